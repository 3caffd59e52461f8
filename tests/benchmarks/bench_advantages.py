"""Times `egae` on flat ragged batches against the usual loop over time steps of a padded rectangle.

    python -m tests.benchmarks.bench_advantages [--repeats 15] [--threads 1] [--device cpu]

Two loops, from the last column of the [B, T] rectangle to the first, as common trainers have them: one trusts that
values and rewards are 0 in the padding, one carries its state over masked columns. All compute GAE of finished
responses, since the loops cannot tell a cut from an end. Repetitions alternate between the contestants, so that a slow
moment of the machine hits all. Speed is relative to the plain loop. Extra memory is the growth of the process's peak
(of the device's peak on CUDA) in a process of its own, beyond inputs that exist already.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tppo.maths.advantages import egae
from tppo.maths.ragged import offsets_of

GAMMA, LAM = 1.0, 0.998


def plain_loop(rewards_BT: Tensor, values_BT: Tensor) -> Tensor:
    """GAE of a rectangle whose padding is 0, one time step after the other."""
    advantage = following = torch.zeros_like(values_BT[:, 0])
    columns = []
    for t in reversed(range(values_BT.shape[1])):
        delta = rewards_BT[:, t] + GAMMA * following - values_BT[:, t]
        advantage = delta + GAMMA * LAM * advantage
        following = values_BT[:, t]
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=1)


def masked_loop(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """GAE of a padded rectangle, one time step after the other; padding carries the state through."""
    following = torch.zeros_like(values_BT[:, 0])
    advantage = torch.zeros_like(following)
    columns = []
    for t in reversed(range(values_BT.shape[1])):
        delta = rewards_BT[:, t] + GAMMA * following - values_BT[:, t]
        updated = delta + GAMMA * LAM * advantage
        mask = mask_BT[:, t]
        following = values_BT[:, t] * mask + (1 - mask) * following
        advantage = updated * mask + (1 - mask) * advantage
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=1)


def lengths_of(shape: str) -> Tensor:
    """Tokens of each response: 64 of 8192, or 4096 with a long tail up to 8192."""
    if shape == "64 x 8192":
        return torch.full((64,), 8192)
    generator = torch.Generator().manual_seed(0)
    return (500 * torch.randn(4096, generator=generator).exp()).long().clamp(1, 8192)


SHAPES = ("64 x 8192", "4096 ragged")


def problem(shape: str, device: str) -> dict[str, Callable[[], Tensor]]:
    """The contestants on the same float32 data; each returns its advantages, [B, T] or [N]."""
    lengths = lengths_of(shape).to(device)
    offsets = offsets_of(lengths)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(int(offsets[-1]), generator=generator).to(device)
    rewards = torch.zeros_like(values)
    rewards[offsets[1:] - 1] = 1.0
    finished = torch.ones(len(lengths), dtype=torch.bool, device=device)
    lam = torch.full((len(lengths),), LAM, dtype=torch.float64, device=device)

    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
    values_BT, rewards_BT = torch.zeros_like(mask, dtype=values.dtype), torch.zeros_like(mask, dtype=values.dtype)
    values_BT[mask], rewards_BT[mask] = values, rewards
    mask_BT = mask.to(values.dtype)
    return {
        "plain loop": lambda: plain_loop(rewards_BT, values_BT),
        "masked loop": lambda: masked_loop(rewards_BT, values_BT, mask_BT),
        "egae": lambda: egae(rewards, values, offsets, finished, gamma=GAMMA, lam=LAM),
        "egae, lambda per response": lambda: egae(rewards, values, offsets, finished, gamma=GAMMA, lam=lam),
    }


def seconds(run: Callable[[], Tensor], device: str) -> float:
    """Wall time of one call, the device's work included."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_growth(shape: str, name: str, device: str, threads: int, answer: multiprocessing.SimpleQueue) -> None:
    """Puts the bytes by which one call raises the peak."""
    torch.set_num_threads(threads)
    run = problem(shape, device)[name]
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        answer.put(torch.cuda.max_memory_allocated() - before)
        return
    # The peak of building the problem may exceed what is in use now: fill the gap before measuring.
    filler = []
    while (before := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) and len(filler) < 4096:
        filler.append(torch.ones(2**18))
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > before:
            break
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def main() -> None:
    """Prints one table a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spawn = multiprocessing.get_context("spawn")
    for shape in SHAPES:
        lengths = lengths_of(shape)
        contestants = problem(shape, arguments.device)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        found = [run().cpu() for run in contestants.values()]
        flat = [x[mask] if x.ndim == 2 else x for x in found]
        worst = max((x - flat[0]).abs().max().item() for x in flat)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(arguments.repeats):
            for name, run in contestants.items():
                times[name].append(seconds(run, arguments.device))
        print(
            f"{shape}: {int(lengths.sum())} tokens of {lengths.numel() * int(lengths.max())} padded, float32, "
            f"{arguments.device}, {arguments.threads} thread(s), {arguments.repeats} repetitions, "
            f"largest difference {worst:.1e}"
        )
        base = statistics.median(times["plain loop"])
        for name, taken in times.items():
            answer = spawn.SimpleQueue()
            child = spawn.Process(target=peak_growth, args=(shape, name, arguments.device, arguments.threads, answer))
            child.start()
            child.join()
            median = statistics.median(taken)
            memory = "?" if answer.empty() else f"{answer.get() / 2**20:.0f}"
            print(
                f"  {name:<26} median {1e3 * median:8.1f} ms  (min {1e3 * min(taken):.1f}, max {1e3 * max(taken):.1f})"
                f"  {base / median:6.1f} x the plain loop  +{memory} MiB at the peak"
            )


if __name__ == "__main__":
    main()
