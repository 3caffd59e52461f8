"""The networks of a run by name: the policy, and what the algorithm's auxiliaries bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from tppo.algorithms.base import Auxiliary, Columns, Context, Parts
from tppo.errors import NonFiniteError
from tppo.fit.optim import ModelOptimizer
from tppo.fit.options import Optimizer
from tppo.models.base import Model, PolicyModel
from tppo.models.call import Call
from tppo.ranks.shard import full
from tppo.types import Batch


class Networks:
    """models: "policy", and the network of each auxiliary by its name. optimizers: of those that are trained."""

    def __init__(self, parts: Parts, models: Mapping[str, Model], policy: Optimizer, call: Call) -> None:
        """policy: options of its optimiser, which is made where the algorithm has terms."""
        self.parts, self.models, self.call = parts, dict(models), call
        options = {a.name: a.optimizer for a in parts.auxiliaries} | {"policy": policy if parts.terms else None}
        self.optimizers = {n: ModelOptimizer(m, o) for n, m in self.models.items() if (o := options[n]) is not None}

    @property
    def policy(self) -> PolicyModel:
        """The policy."""
        policy = self.models["policy"]
        assert isinstance(policy, PolicyModel)
        return policy

    def context(self, aux: Auxiliary, key: tuple[int, int], version: int) -> Context:
        """What an auxiliary may use of the run."""
        return Context(self.models[aux.name], self.optimizers.get(aux.name), self.policy, self.call, key, version)

    def live(self, batch: Batch, key: tuple[int, int], version: int) -> Callable[[Tensor], Columns] | None:
        """Makes the columns that are new in every mini-batch; None where the algorithm names none."""
        living = [aux for aux in self.parts.auxiliaries if aux.gives & self.parts.live]

        def columns(need_N: Tensor) -> Columns:
            made: Columns = {}
            for aux in living:
                made |= aux.columns(self.context(aux, key, version), batch, need_N)
            return made

        return columns if living else None

    def check_finite(self, step: int) -> None:
        """Raise NonFiniteError, after so many steps, for a weight that is not finite; asked before weights are saved.

        An update with finite gradients can still overflow. Ranks must all call.
        """
        for name, model in self.models.items():
            for weight, p in model.named_parameters():
                if count := int(full((~p.detach().isfinite()).sum())):  # a rank's shard may be empty
                    spared = "no checkpoint or policy was saved with it"
                    raise NonFiniteError(f"weight {weight} of {name}", [], count, step=step, spared=spared)

    def follow(self) -> None:
        """Tell every auxiliary of a step of the policy's optimiser."""
        for aux in self.parts.auxiliaries:
            aux.follow(self.models[aux.name], self.policy)
