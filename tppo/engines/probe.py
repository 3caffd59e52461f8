"""After each load: does the engine hold the weights it was given?

A stale output layer raises no error in any engine; it only shifts log-probabilities. A few fixed tokens show it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tppo.engines.base import Engine
from tppo.errors import EngineError
from tppo.models.base import Model, PolicyModel
from tppo.models.call import placement
from tppo.ranks.ranks import Ranks

PROBE_TOKENS = 8


def probe(
    engine: Engine, policy: PolicyModel, context: Sequence[int], ranks: Ranks, *, bound: float, version: int
) -> float:
    """Largest |log-prob of engine - of trainer| [nats] on any rank, over a few fixed tokens behind ``context``.

    Raises EngineError when it exceeds ``bound`` (or is not a number).
    """
    tokens = [*context, *(k % policy.vocab_size for k in range(PROBE_TOKENS))]
    first = len(context)
    device, _ = placement(policy)
    assert isinstance(policy, Model)
    ids = torch.tensor([tokens], device=device)
    with torch.no_grad():
        table = policy(lambda p: p.logits(p.hidden(ids)[0, first - 1 : -1]).float().log_softmax(-1))
    ours = table.gather(-1, ids[0, first:, None]).squeeze(-1).cpu()
    gap, failure = float("nan"), None
    try:
        gap = float((ours - torch.tensor(engine.score(tokens, first))).abs().max())
    except Exception as error:
        failure = error
    gap = max(ranks.together(gap, failure), key=lambda x: (x != x, x))  # NaN is the largest
    if not gap <= bound:
        raise EngineError(
            f"after loading policy version {version} the log-probs of engine and trainer differ by {gap:.3g} nats, "
            f"expected at most {bound:g} (probe_bound): some weight in the engine is stale or rounded too coarsely"
        )
    return gap
