"""What an algorithm is: a frozen dataclass of its own numbers, and one method that takes it apart.

The loop knows only ``Parts``. What an algorithm does not name is not built, run, saved, sharded or planned.
Shapes: _N tokens of the batch, _S responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from torch import Tensor

from tppo.fit.options import Optimizer
from tppo.fit.terms import Columns, Term
from tppo.ranges import COLD, HOT, RESPONSES, TOKENS, Range
from tppo.types import Batch, Response

if TYPE_CHECKING:
    from tppo.data.workload import Workload
    from tppo.fit.optim import ModelOptimizer
    from tppo.models.base import Model, PolicyModel
    from tppo.models.call import Call

Verdict = Literal["now", "wait", "drop"]
Select = Callable[[Sequence[Response], int], Verdict]
"""(all members of one group, policy version) -> whether what is there trains in this step."""
Shape = Callable[[Tensor, Batch, Columns], Tensor]
"""(rewards [N], batch, columns) -> rewards [N]."""


@dataclass(frozen=True)
class Rollout:
    """Generation."""

    slots: Annotated[int, Range(1, RESPONSES, unit="responses")] = 8192
    """Responses in flight, constant."""
    group_size: Annotated[int, Range(1, RESPONSES, unit="responses")] = 16
    """Responses to each prompt."""
    max_response_tokens: Annotated[int, Range(1, TOKENS, unit="tokens")] = 24576
    """Total cap of a response; reaching it ends the response."""
    temperature: Annotated[float, Range(COLD, HOT)] = 1.0
    """Of sampling, and of every log-probability in training."""


@dataclass(frozen=True)
class Advantage:
    """From what is known of the batch to the advantage of each token."""

    estimate: Callable[[Batch, Columns, Tensor], Columns]
    """(batch, columns, tokens that train [N]) -> at least "advantages" [N], 0 on tokens that do not train."""
    reads: frozenset[str] = frozenset()
    """Columns that it reads; it gets no others."""
    gives: frozenset[str] = frozenset({"advantages"})
    """Columns that it gives."""


@dataclass(frozen=True)
class Reward:
    """A change of the token rewards before advantages are estimated."""

    shape: Shape
    reads: frozenset[str] = frozenset()
    """Columns that it reads besides "rewards"; it gets no others."""


@dataclass(frozen=True)
class Stop:
    """When a run has done enough before its last step."""

    metric: str
    """The metric that is watched; steps without it do not count."""
    why: Callable[[Sequence[float]], str]
    """(the metric of every step so far) -> what ends the run, in words; empty while nothing does."""


@dataclass(frozen=True)
class Context:
    """What an auxiliary may use of the run."""

    model: Model
    """The auxiliary's own network."""
    optimizer: ModelOptimizer | None
    """Of that network; None where the auxiliary names none."""
    policy: PolicyModel
    call: Call
    key: tuple[int, int]
    """Seed of the run and number of the step."""
    version: int
    """Changes of the policy's weights so far."""


class Auxiliary:
    """A network beside the policy: critic, reference, moving average. It owns the columns that it gives."""

    name: ClassVar[str]
    """Of the network in checkpoints, and of its phase in the metrics."""
    gives: ClassVar[frozenset[str]]
    """Columns that it gives."""
    optimizer: Optimizer | None = None
    """None: the network is never trained."""
    begins_with: str = ""
    """A run, or one of its checkpoints, whose network of this name it begins with; empty is what ``start`` makes."""

    def start(self, workload: Workload) -> Model:
        """The network as the run begins."""
        raise NotImplementedError(f"{type(self).__name__} must define start()")

    def columns(self, at: Context, batch: Batch, train_N: Tensor) -> Columns:
        """What it gives, before the update. train_N: bool, the tokens that train the policy."""
        raise NotImplementedError(f"{type(self).__name__} must define columns()")

    def terms(self) -> tuple[Term, ...]:
        """What the network descends in ``fit``; ``tppo plan`` runs them too."""
        return ()

    def fit(self, at: Context, batch: Batch, columns: Columns) -> dict[str, float | None]:
        """Train the network, once a step before the policy; returns metrics."""
        return {}

    def follow(self, own: Model, policy: PolicyModel) -> None:
        """Take notice of a step of the policy's optimiser, which has just been made."""


def no_tokens(batch: Batch) -> Tensor:
    """None trains the policy."""
    return batch.window_N & False


@dataclass(frozen=True)
class Parts:
    """An algorithm, taken apart."""

    select: Select
    """Which responses train in a step (``tppo.algorithms.parts.select``)."""
    terms: tuple[Term, ...] = ()
    """What the policy descends, the objective first; without any the policy is not trained."""
    tokens: Callable[[Batch], Tensor] = no_tokens
    """bool [N], which tokens of the selected responses train the policy."""
    advantage: Advantage | None = None
    """None where no term reads advantages."""
    window: int | None = None
    """Most new tokens of a response in a round of generation; None generates whole responses."""
    rewards: tuple[Reward, ...] = ()
    """Applied in order."""
    auxiliaries: tuple[Auxiliary, ...] = ()
    """Networks beside the policy."""
    groups: int | None = None
    """Generate in rounds until so many groups are selected; None: until there is one response."""
    live: frozenset[str] = frozenset()
    """Columns of auxiliaries that are made anew for every mini-batch of the policy."""
    once: bool = False
    """Whether a batch trains the policy in one pass only: a loss without ratio or clip has no lower bound in more."""
    lag: int = 0
    """Batches that are made before one trains: deterministic emulation of an asynchronous run of this lag."""
    staleness: tuple[int, int] | None = None
    """(groups that train in a step, eta): groups are opened for eta steps ahead alone, so that the average one is eta
    versions old at most; one that takes long may be older. None opens groups freely and trains on all selected."""
    policy_from: int = 0
    """First step in which the policy trains; before it only auxiliaries do."""
    stop: Stop | None = None

    @property
    def reads(self) -> frozenset[str]:
        """Every column that some part reads."""
        return self.reads_first.union(*(term.reads for term in self.terms))

    @property
    def reads_first(self) -> frozenset[str]:
        """Columns that rewards and advantage read: in every step, before there are advantages."""
        reads = [reward.reads for reward in self.rewards]
        return frozenset[str]().union(*reads, self.advantage.reads if self.advantage else ())


@dataclass(frozen=True)
class Algorithm:
    """Base of all algorithms. The fields of a subclass are its own numbers; the command line shows these, no others."""

    name: ClassVar[str] = ""
    """For reports."""

    def parts(self, rollout: Rollout) -> Parts:
        """Take the algorithm apart, for this generation."""
        raise NotImplementedError(f"{type(self).__name__} must define parts()")

    def check(self, rollout: Rollout) -> None:
        """Its own impossible combinations. Raises ConfigError, before anything is loaded."""

    def idle(self, rollout: Rollout) -> Mapping[str, str]:
        """Its own fields that change nothing beside the others, each with the reason."""
        return {}


__all__ = [
    "Advantage", "Algorithm", "Auxiliary", "Columns", "Context", "Parts", "Reward", "Rollout", "Select", "Stop", "Term",
    "Verdict", "no_tokens",
]  # fmt: skip
