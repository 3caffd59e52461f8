"""``python -m tppo`` is the command ``tppo``."""

import sys

from tppo.cli import main

if __name__ == "__main__":
    sys.exit(main())
