"""After each load: does the engine hold the weights it was given?

A stale output layer raises no error in any engine; it only shifts log-probabilities. The tokens of a few prompts show
it: their mean difference is small however coarsely either side rounds, where the largest over unlikely tokens is not
(0.3 to 1 nats in bfloat16 with sound weights).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tppo.engines.base import Engine
from tppo.errors import EngineError
from tppo.models.base import PolicyModel
from tppo.models.call import score_tokens
from tppo.ranks.ranks import Ranks

LEAST_TOKENS = 8
"""Fixed tokens behind a prompt that is shorter."""
BOUNDS = {False: 0.01, True: 0.15}
"""Mean difference [nats] by whether either side computes in 16 bits: three times the noise of sound weights there. A
lost norm or a stale output layer gives more than 1; one layer without its keys 0.1 to 0.4, so not every one is seen."""


def probe(
    engine: Engine, policy: PolicyModel, prompts: Sequence[Sequence[int]], *, bound: float, version: int, ranks: Ranks
) -> float:
    """Mean |log-prob of engine - of trainer| [nats] over the tokens of ``prompts``, the largest of any rank.

    Raises EngineError when it exceeds ``bound`` (or is not a number).
    """
    gap, failure = float("nan"), None
    texts = [[*tokens, *(k % policy.vocab_size for k in range(LEAST_TOKENS - len(tokens) + 1))] for tokens in prompts]
    ours = torch.cat([score_tokens(policy, text, 1).cpu() for text in texts])
    try:
        theirs = torch.cat([torch.tensor(engine.score(text, 1)) for text in texts])
        gap = float((ours - theirs).abs().mean())
    except Exception as error:
        failure = error
    gap = max(ranks.together(gap, failure), key=lambda x: (x != x, x))  # NaN is the largest
    if not gap <= bound:
        raise EngineError(
            f"after loading policy version {version} the log-probs of engine and trainer differ by {gap:.3g} nats on "
            f"average, expected at most {bound:g} (probe_bound): some weight in the engine is stale, or rounded too "
            "coarsely"
        )
    return gap
