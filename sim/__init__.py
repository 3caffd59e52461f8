"""Simulated worlds in which the answer is known: token MDPs, a toy language, and a clock for rollouts.

- `sim.mdp`: token MDPs as tables, families of them, and Gymnasium environments.
- `sim.exact`: values, optima, policies, policy gradients and estimator moments of token MDPs, computed, not sampled.
- `sim.language`: a toy language with checkable problems, a tokenizer and a grader.
- `sim.clock`: how long schedules of rollouts take on given accelerators.

`sim.exact` builds on `sim.mdp`; the others stand alone. Nothing here knows of training: the only dependencies are NumPy
and, for the environments, Gymnasium.
"""
