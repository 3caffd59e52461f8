"""Responses on disk: one safetensors file, flat arrays with offsets, everything that is text as JSON inside it.

Used by checkpoints (what is in flight) and by dumps of whole steps. Floats are kept in float64, as they are in memory,
so nothing is rounded on the way.
"""

from __future__ import annotations

import itertools
import json
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tppo.errors import DataError
from tppo.files import parse_json, read_file
from tppo.shapes import misfit
from tppo.types import Prompt, Response, Status

_STATUSES = tuple(Status)  # a status is stored as its index
_PER_TOKEN = {"tokens": np.int64, "logprobs": np.float64, "versions": np.int64}


class _About(TypedDict):
    """Of a prompt, besides its tokens."""

    id: str
    truth: str
    source: str


class _Text(TypedDict):
    """What is JSON in the file."""

    statuses: list[str]
    prompts: list[_About]
    about: dict[str, Any]


def pack_responses(responses: Sequence[Response], about: dict[str, Any]) -> bytes:
    """The file's content. ``about`` is plain JSON that goes along.

    Raises ValueError for a response whose arrays do not fit together: only what stands between two steps is whole.
    """
    for r in responses:
        whole = len(r.tokens) == len(r.logprobs) == len(r.versions)
        if not whole or len(r.values) not in (0, *r.window_starts, len(r.tokens)):
            raise ValueError(f"response {r.uid}: its arrays differ in length; a step is not over")
    arrays: dict[str, np.ndarray] = {
        f"{name}_N": _flat([getattr(r, name) for r in responses], dtype) for name, dtype in _PER_TOKEN.items()
    }
    prompts: dict[int, Prompt] = {r.group: r.prompt for r in responses}
    arrays |= {
        "offsets": _offsets([len(r.tokens) for r in responses]),
        "values": _flat([r.values for r in responses], np.float64),
        "value_offsets": _offsets([len(r.values) for r in responses]),
        "uids_S": np.array([r.uid for r in responses], dtype=np.int64),
        "groups_S": np.array([r.group for r in responses], dtype=np.int64),
        "status_S": np.array([_STATUSES.index(r.status) for r in responses], dtype=np.uint8),
        # NaN stands for "no reward yet": a reward is always finite.
        "rewards_S": np.array([math.nan if r.reward is None else r.reward for r in responses], dtype=np.float64),
        "window_starts": _flat([r.window_starts for r in responses], np.int64),
        "window_offsets": _offsets([len(r.window_starts) for r in responses]),
        "prompt_groups": np.array(list(prompts), dtype=np.int64),
        "prompt_tokens": _flat([p.tokens for p in prompts.values()], np.int64),
        "prompt_offsets": _offsets([len(p.tokens) for p in prompts.values()]),
    }
    texts = [{"id": p.id, "truth": p.truth, "source": p.source} for p in prompts.values()]
    text = json.dumps({"statuses": [s.value for s in _STATUSES], "prompts": texts, "about": about})
    arrays["json"] = np.frombuffer(text.encode(), dtype=np.uint8)
    return save(arrays)


def read_responses(path: Path) -> tuple[list[Response], dict[str, Any]]:
    """Responses and ``about``. Raises DataError for a file that is not one of ours, or whose arrays do not fit."""
    try:
        a = load(read_file(path))
        text = parse_json(a["json"].tobytes())
        if wrong := misfit(_Text, text):
            raise ValueError(wrong)
        return _responses(a, text), text["about"]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise DataError(f"{path} does not hold responses: {type(error).__name__}: {error}") from None


def _responses(a: dict[str, np.ndarray], text: dict[str, Any]) -> list[Response]:
    """Raises ValueError, KeyError or TypeError for what does not fit."""
    statuses = [Status(value) for value in text["statuses"]]
    uids, groups, count = _numbers(a, "uids_S"), _numbers(a, "groups_S"), len(a["uids_S"])
    names = _numbers(a, "prompt_groups")
    prompts = {
        group: Prompt(tokens=tuple(tokens), **about)
        for group, tokens, about in zip(
            names, _cut(a, "prompt_tokens", "prompt_offsets", len(names)), text["prompts"], strict=True
        )
    }
    tokens, logprobs, versions = (_cut(a, f"{name}_N", "offsets", count) for name in _PER_TOKEN)
    values, starts = _cut(a, "values", "value_offsets", count), _cut(a, "window_starts", "window_offsets", count)
    rewards, of_status = a["rewards_S"].tolist(), _numbers(a, "status_S")
    found = [
        Response(
            uid=uids[i],
            group=groups[i],
            prompt=prompts[groups[i]],
            tokens=array("q", tokens[i]),
            logprobs=array("d", logprobs[i]),
            values=array("d", values[i]),
            versions=array("q", versions[i]),
            window_starts=starts[i],
            status=statuses[of_status[i]],
            reward=None if math.isnan(rewards[i]) else rewards[i],
        )
        for i in range(count)
    ]
    for r in found:
        length, windows = len(r.tokens), r.window_starts
        whole = len(r.values) in (0, *windows, length) and windows == sorted(windows) and windows[:1] in ([], [0])
        if not whole or (windows and windows[-1] > length) or (r.tokens and not windows):
            raise ValueError(f"response {r.uid}: its arrays do not fit together")
    return found


def _cut(a: dict[str, np.ndarray], name: str, at: str, count: int) -> list[list[Any]]:
    """The parts of a flat array, by its offsets."""
    offsets, flat = _numbers(a, at), a[name].tolist()
    if len(offsets) != count + 1 or offsets[0] or offsets[-1] != len(flat) or offsets != sorted(offsets):
        raise ValueError(f"{at} are no offsets of {count} parts of {name}")
    if name != "logprobs_N" and name != "values":
        _numbers(a, name)
    return [flat[first:end] for first, end in itertools.pairwise(offsets)]


def _numbers(a: dict[str, np.ndarray], name: str) -> list[int]:
    """An array of whole numbers that are not negative."""
    if a[name].ndim != 1 or a[name].dtype.kind not in "iu" or (a[name] < 0).any():
        raise ValueError(f"{name} holds something else than numbers from 0")
    return a[name].tolist()


def _flat(parts: Sequence[Sequence[Any]], dtype: Any) -> np.ndarray:
    arrays = [np.asarray(part, dtype=dtype) for part in parts]
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
