"""What this library raises. Everything a user can cause derives from :class:`TPPOError`."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self


class TPPOError(Exception):
    """Base class of all errors raised on purpose."""


def _shown(found: Any) -> str:
    """A value in a message; a whole number of thousands of digits, which Python does not print, by its size."""
    try:
        return repr(found)
    except ValueError:
        return f"a number of {found.bit_length()} bits" if isinstance(found, int) else f"a {type(found).__name__}"


class ConfigError(TPPOError, ValueError):
    """A configuration that cannot be run.

    >>> raise ConfigError("algorithm.window", 4, "more than algorithm.ignore_last (8)", "use a longer window")
    Traceback (most recent call last):
    ...
    tppo.errors.ConfigError: algorithm.window = 4: expected more than algorithm.ignore_last (8); \
use a longer window
    """

    def __init__(self, field: str, found: Any, expected: str, remedy: str = "") -> None:
        self.field, self.found, self.expected, self.remedy = field, found, expected, remedy
        super().__init__(f"{field} = {_shown(found)}: expected {expected}" + (f"; {remedy}" if remedy else ""))


class DataError(TPPOError, ValueError):
    """A prompt, response or file whose content cannot be used."""


class FormatError(DataError):
    """A file of this project in a format that this version does not read; the message says what does."""


class CheckpointError(DataError):
    """A checkpoint that is torn, corrupted, or of another run."""


class OutputError(TPPOError, OSError):
    """Results that could not be written."""


@contextlib.contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Inside, a ConfigError or DataError that speaks of a field by one of these names uses the other one.

    Who reads a part of a configuration does not know where it is in the whole, and who knows that gives the path.

    >>> with renamed({"data.path": "task.train.path"}):
    ...     raise ConfigError("data.path", "x.csv", "a name that ends in .json")
    Traceback (most recent call last):
    ...
    tppo.errors.ConfigError: task.train.path = 'x.csv': expected a name that ends in .json
    """

    def told(text: str) -> str:
        for name, whole in names.items():
            # A name that is also a word of English is one only where a value follows.
            after = r"(?![\w-])" if re.search(r"[._]", name) else "(?= = )"
            text = re.sub(rf"(?<![\w.'/-]){re.escape(name)}{after}", whole, text)
        return text

    try:
        yield
    except ConfigError as error:
        field = names.get(error.field) or told(error.field)
        raise ConfigError(field, error.found, told(error.expected), told(error.remedy)) from None
    except DataError as error:
        raise type(error)(told(str(error))) from None


class EngineError(TPPOError, RuntimeError):
    """An inference engine broke its contract."""


class EngineDied(EngineError):
    """The inference engine's process is gone. Nothing of the run is: its window can be generated again."""


class RanksDiffer(TPPOError, RuntimeError):
    """Ranks of one run hold different data: nothing they compute together would mean anything."""


class RewardError(TPPOError, RuntimeError):
    """A reward function raised or returned something that is not a finite number."""


class NonFiniteError(TPPOError, ArithmeticError):
    """A NaN or an infinity where training needs a number; names the tensor and the responses, and the step once known.

    >>> print(str(NonFiniteError("policy loss", [8], 1).at_step(3)).partition(";")[0])
    policy loss has 1 non-finite value(s) at step 3, in responses [8]
    """

    def __init__(
        self,
        tensor: str,
        responses: Sequence[int],
        count: int,
        *,
        step: int | None = None,
        spared: str = "nothing was updated with it",
    ) -> None:
        """spared: what has not been done with the tensor."""
        self.tensor, self.responses, self.count, self.step = tensor, tuple(responses), count, step
        self.spared = spared
        super().__init__(self._message())

    def at_step(self, step: int) -> Self:
        """This error, with the step named: functions that compute do not know it, the loop does."""
        self.step = step
        self.args = (self._message(),)
        return self

    def _message(self) -> str:
        shown = ", ".join(str(uid) for uid in self.responses[:8]) + (", ..." if len(self.responses) > 8 else "")
        when = "" if self.step is None else f" at step {self.step},"
        where = f"in responses [{shown}]" if self.responses else "in no single response"
        return (
            f"{self.tensor} has {self.count} non-finite value(s){when} {where}; {self.spared}. "
            "Usual causes: a learning rate that is too high, a reward that is not finite, or a half-precision overflow"
        )
