"""Ragged batches for the tests of this folder."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

# Lengths around powers of two, where doubling could be off by one; 0 is an EMPTY response.
LENGTHS = st.sampled_from([0, 0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40])
UNIT = st.one_of(st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.floats(0, 1))


@dataclass
class Ragged:
    """A ragged batch in float64; slices of one response by `rows`."""

    lengths: list[int]
    rewards: NDArray[np.float64]
    values: NDArray[np.float64]
    cut: NDArray[np.float64]
    lam: NDArray[np.float64]
    finished: list[bool]
    keep: NDArray[np.bool_]

    @property
    def offsets(self) -> torch.Tensor:
        return torch.tensor([0, *np.cumsum(self.lengths)], dtype=torch.int64)

    def rows(self, flat: NDArray) -> list[NDArray]:
        return np.split(flat, np.cumsum(self.lengths)[:-1])


def make(lengths: list[int], seed: int, dtype: type = np.float64) -> Ragged:
    rng, n, s = np.random.default_rng(seed), sum(lengths), len(lengths)

    def normal(k: int) -> NDArray[np.float64]:
        return rng.normal(size=k).astype(dtype).astype(np.float64)

    return Ragged(
        lengths=lengths,
        rewards=normal(n),
        values=normal(n),
        cut=normal(s),
        lam=rng.uniform(size=s),
        finished=[bool(x) for x in rng.integers(0, 2, size=s)],
        keep=rng.uniform(size=n) < rng.choice([0.0, 0.7, 1.0]),
    )


@st.composite
def ragged(draw: st.DrawFn, dtype: type = np.float64) -> Ragged:
    return make(draw(st.lists(LENGTHS, min_size=1, max_size=6)), draw(st.integers(0, 2**32 - 1)), dtype)


def flat(x: object, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.as_tensor(np.asarray(x), dtype=dtype, device=device)
