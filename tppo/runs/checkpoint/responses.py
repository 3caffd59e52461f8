"""Responses on disk: one safetensors file, flat arrays with offsets, everything that is text as JSON inside it.

Used by checkpoints (what is in flight) and by dumps of whole steps. Floats are kept in float64, as they are in memory,
so nothing is rounded on the way.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tppo.errors import DataError
from tppo.types import Prompt, Response, Status

_STATUSES = tuple(Status)  # a status is stored as its index
_PER_TOKEN = {"tokens": np.int64, "logprobs": np.float64, "versions": np.int64}


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
    """Responses and ``about``. Raises DataError for a file that is not one of ours."""
    try:
        a = load(path.read_bytes())
        text = json.loads(a["json"].tobytes())
        statuses = [Status(value) for value in text["statuses"]]
        cut = lambda name, at, i: a[name][a[at][i] : a[at][i + 1]].tolist()  # noqa: E731
        prompts = {
            int(group): Prompt(tokens=tuple(cut("prompt_tokens", "prompt_offsets", i)), **text["prompts"][i])
            for i, group in enumerate(a["prompt_groups"])
        }
        responses = [
            Response(
                uid=int(uid),
                group=int(a["groups_S"][i]),
                prompt=prompts[int(a["groups_S"][i])],
                tokens=array("q", cut("tokens_N", "offsets", i)),
                logprobs=array("d", cut("logprobs_N", "offsets", i)),
                values=array("d", cut("values", "value_offsets", i)),
                versions=array("q", cut("versions_N", "offsets", i)),
                window_starts=cut("window_starts", "window_offsets", i),
                status=statuses[a["status_S"][i]],
                reward=None if math.isnan(a["rewards_S"][i]) else float(a["rewards_S"][i]),
            )
            for i, uid in enumerate(a["uids_S"])
        ]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path} does not hold responses: {type(error).__name__}: {error}") from None
    return responses, text["about"]


def _flat(parts: Sequence[Sequence[Any]], dtype: Any) -> np.ndarray:
    arrays = [np.asarray(part, dtype=dtype) for part in parts]
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
