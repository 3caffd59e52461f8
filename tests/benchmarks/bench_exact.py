"""Time and memory of the exact solver on a large table. Run: python -m tests.benchmarks.bench_exact

Every solve streams over time and keeps one time step, as a user of a table of this size would. The occupancy keeps its
[H, S] result. Peak memory is that of the whole process, tables included.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np

from sim.exact.moments import iter_estimator_moments
from sim.exact.values import evaluate, iter_evaluate, iter_optimum, lengths, softmax
from sim.mdp.families import garnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--horizon", type=int, default=256)
    parser.add_argument("--branching", type=int, nargs="+", default=[1, 4])
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    policy = softmax(rng.standard_normal((args.states, args.tokens)))
    for branching in args.branching:
        mdp = garnet(args.states, args.tokens, branching, args.horizon, seed=0, stop_token=True)
        critic = rng.standard_normal((args.horizon + 1, args.states))
        print(f"{args.states} states x {args.tokens} tokens x {branching} outcomes x {args.horizon} steps")
        timed("evaluate", lambda mdp=mdp: drain(iter_evaluate(mdp, policy)))
        timed("optimum", lambda mdp=mdp: drain(iter_optimum(mdp)))
        timed("lengths", lambda mdp=mdp: lengths(mdp, policy))
        for name, choice in {
            "moments, gae": {"estimator": "gae"},
            "moments, egae repeat, 8 windows": {
                "estimator": "egae",
                "boundary": "repeat",
                "window": -(-args.horizon // 8),
            },
        }.items():
            timed(
                name,
                lambda mdp=mdp, critic=critic, choice=choice: drain(
                    iter_estimator_moments(mdp, policy, critic, lam=0.95, **choice)
                ),
            )
    stored_gib = args.horizon * args.states * args.tokens * 4 / 2**30
    print(f"stored in memory, float32: Q takes {stored_gib:.2f} GiB")
    timed("evaluate, Q kept", lambda: evaluate(mdp, policy, dtype=np.float32))


def timed(name: str, solve: Callable[[], object]) -> None:
    start = time.perf_counter()
    solve()
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    print(f"  {name:34s} {seconds:7.2f} s    peak memory so far {peak_gib:5.2f} GiB", flush=True)


def drain(steps: Iterable[object]) -> None:
    for _ in steps:
        pass


if __name__ == "__main__":
    main()
