"""``python -m paper_repro.reproduction`` runs the whole reproduction."""

import sys

from paper_repro.reproduction.command import main

if __name__ == "__main__":
    sys.exit(main())
