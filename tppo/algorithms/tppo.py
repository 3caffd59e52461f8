"""Truncated PPO, arXiv 2506.15050.

    A_t = sum_{j=0}^{l-1-t} (gamma lambda_i)^j delta_{t+j},     V(s_l) := V(s_{l-1}) where the window cut the response

Generate at most a window of tokens for a constant number of slots; train the policy at once on these tokens; train the
critic on finished responses only, with Monte-Carlo returns.

Evidence of the defaults. The paper's abstract, its Eq. 6 and its reviews confirm EGAE with the repeated value, the dual
update and the filtering of tokens. All numbers below are from the authors' public port of the method, which never ran
to a result, and are unconfirmed for the paper: alpha 0.05, lambda floor 0.95, m 8, clip 0.2/0.28, dual clip 10,
positive-example weight 0.1 (also VAPO, arXiv 2504.05118), value clip 0.5/0.6, critic warm-up 10 steps.

Edge cases. A response that ends in the window's last slot is finished, not cut. One that reaches the total cap is
finished and graded. The recursion runs over the whole window; dropping the last m tokens comes after it. A window must
be longer than m, or an unfinished window would train nothing.

Where we depart from the port, on purpose: boolean selection at the cut (the port negates integers bitwise), the plain
log-ratio (the port's ratio is never below one), token counts that are global and count kept tokens only, values of
earlier windows recomputed as clip centre, all unfinished responses carried over whatever is selected for training.
"""

from __future__ import annotations

from tppo.algorithms.base import Algorithm, Schedule


def tppo(window: int) -> Algorithm:
    """T-PPO with a window of ``window`` tokens.

    >>> tppo(8192).advantage.boundary
    'repeat'
    """
    return Algorithm(name="tppo", schedule=Schedule(window=window))
