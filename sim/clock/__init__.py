"""The rollout clock: how long schedules of rollouts take on given accelerators, without running anything.

- `lengths`: distributions of response lengths.
- `hardware`: data sheets, model sizes, clusters and their assumed efficiency.
- `serving`: what a batch of requests makes an inference engine do, in decode steps, rows and keys.
- `schedules`: which tokens each step generates, trains and reads again.
- `roofline`: seconds of that work from a data sheet.
- `fitted`: seconds of that work from measured runs.
- `simulate`: seconds and utilisation of a schedule.
- `asynchronous`: the same where generation and training overlap.
- `equilibrium`: exact expectations of a step, without simulation.
"""
