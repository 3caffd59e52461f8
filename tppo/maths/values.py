from tppo.maths.advantages import discounted_returns, lambda_returns  # noqa
from tppo.maths.objectives import ValueTerms, value_loss  # noqa
def explained_variance(values, targets):
    if len(targets) < 2:
        return None
    spread = targets.double().var()
    return None if spread == 0 else float(1 - (targets.double() - values.double()).var() / spread)
