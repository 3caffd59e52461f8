"""Networks beside the policy. An algorithm that does not name one does not build it."""

from tppo.algorithms.auxiliaries.average import Average
from tppo.algorithms.auxiliaries.critic import Critic
from tppo.algorithms.auxiliaries.reference import Reference

GIVERS = {
    column: f"auxiliary {kind.__name__}" for kind in (Average, Critic, Reference) for column in sorted(kind.gives)
}
"""Column to the auxiliary of this library that gives it."""

__all__ = ["GIVERS", "Average", "Critic", "Reference"]
