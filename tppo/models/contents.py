"""What is in a model folder, read as data that nobody trusts, before any library builds something from it.

A folder comes from a download, a copy or another program: each file may be missing, cut off, a git-LFS pointer, of
another kind than its name says, or made to do harm. Everything that reads a model goes through here first: training,
evaluation, export and the plan. No code of a folder is ever run.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tppo.errors import ConfigError

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""One of these makes a tokenizer."""
INDEX, ONE_FILE = "model.safetensors.index.json", "model.safetensors"
OBJECTS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    INDEX,
)  # fmt: skip
"""Files that must hold a JSON object where they are there. A tokenizer.json is long, and for its library to read."""
TEXT_BYTES = 2**29
"""Longest file that is read whole."""
POINTER = b"version https://git-lfs"
COUNTS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings", "n_embd", "n_layer", "n_head", "n_positions", "n_inner",
)  # fmt: skip
"""Fields of a config.json that are at least 1 where they are given."""
_WHOLE = re.compile(r"(n|num)_\w+|\w+_(size|dim|heads|positions|position_embeddings)")
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Stored:
    """A weight in a file: file name, shape, type of its numbers as safetensors calls it."""

    file: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numbers(self) -> int:
        """How many it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def check_model_folder(folder: Path, *, tokenizer: bool = True, weights: bool = True) -> dict[str, Any]:
    """The config of a complete and readable model folder. Raises ConfigError that names the file and what is wrong.

    tokenizer, weights: whether they are needed.
    """
    check_folder(folder)
    objects = {name: read_object(path) for name in OBJECTS if _is_there(path := folder / name)}
    missing = [] if "config.json" in objects else ["config.json"]
    if weights:
        missing += [name for name in weight_files(folder) if not _is_there(folder / name)]
    if tokenizer and not any(_is_there(folder / name) for name in TOKENIZERS):
        missing.append(TOKENIZERS[0])
    if missing:
        shown = ", ".join(name[:80] for name in missing[:6])
        shown += f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        raise ConfigError("model", str(folder), f"a complete model folder; missing: {shown}", "download it again")
    config = objects["config.json"]
    check_sizes(config, folder / "config.json")
    return config


def check_folder(folder: Path) -> None:
    """Raise ConfigError unless this is a folder that can be read; says what else it is."""
    try:
        found = folder.stat()
        if stat.S_ISDIR(found.st_mode):
            next(folder.iterdir(), None)
            return
        said = "it is a file, a pipe or a device"
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileNotFoundError) and folder.is_symlink():
            said = "it is a link to nothing"
    raise ConfigError("model", str(folder), "an existing folder with a model", f"{said}; or use a known name")


def _is_there(path: Path) -> bool:
    """Whether there is something by this name, sound or not: a dangling link is there."""
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def check_regular(path: Path) -> None:
    """Raise ConfigError unless this is a regular file: a pipe would hang whoever reads it."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return
        said = "it is a folder, a pipe or a device"
    except OSError as error:
        said = error.strerror or str(error)
    raise ConfigError("model", str(path), "a regular file", said)


def read_text(path: Path, most: int = TEXT_BYTES) -> str:
    """A file of a model folder as text. Raises ConfigError for what is no readable regular file of at most ``most``
    bytes in UTF-8.
    """
    try:
        check_regular(path)
        if (size := path.stat().st_size) > most:
            raise ConfigError("model", str(path), f"at most {most} bytes", f"it has {size}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, ConfigError):
            raise
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError("model", str(path), "a readable text file", str(said)) from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder. Raises ConfigError."""
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        said = "it is a git-LFS pointer: git lfs pull" if text.encode().startswith(POINTER) else str(error)
        raise ConfigError("model", str(path), "a JSON object", said) from None
    if not isinstance(found, dict):
        raise ConfigError("model", str(path), "a JSON object", f"it holds a {type(found).__name__}")
    return found


def check_sizes(config: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError for sizes in a config.json that make no model, and for weights that are quantised."""
    if (kind := config.get("model_type")) is not None and not isinstance(kind, str):
        raise ConfigError("model.model_type", kind, f"text in {path}")
    if config.get("quantization_config") or config.get("compression_config"):
        raise ConfigError(
            "model.quantization_config", _shown(config.get("quantization_config") or config["compression_config"]),
            f"none in {path}: quantised weights cannot be trained, nor be compared with trained ones",
            "use the model's own weights, or convert them to bfloat16 first",
        )  # fmt: skip
    for name in ("attn_implementation", "_attn_implementation"):
        if (attention := config.get(name)) not in (None, "sdpa", "eager"):
            raise ConfigError(f"model.{name}", attention, f"'sdpa', 'eager' or none, in {path}")
    for name, value in config.items():
        if value is None or isinstance(value, list | dict) or not (name in COUNTS or _WHOLE.fullmatch(name)):
            continue
        least = 1 if name in COUNTS else None
        if type(value) is not int or abs(value) >= 2**31 or (least is not None and value < least):
            expected = "a whole number" + (f" in [{least}, 2**31)" if least is not None else " below 2**31")
            raise ConfigError(f"model.{name}", value, f"{expected}, in {path}")
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    width = config.get("hidden_size")
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise ConfigError("model.num_key_value_heads", groups, f"a divisor of num_attention_heads ({heads}), in {path}")
    if isinstance(heads, int) and isinstance(width, int) and config.get("head_dim") is None and width % heads:
        raise ConfigError("model.num_attention_heads", heads, f"a divisor of hidden_size ({width}), in {path}")


def _shown(value: Any) -> str:
    return str(value.get("quant_method", value) if isinstance(value, dict) else value)[:60]


def context_length(folder: Path) -> int | None:
    """Positions of the model [tokens], or None when its config does not say."""
    config = check_model_folder(folder)
    found = config.get("max_position_embeddings") or config.get("n_positions")
    return found if isinstance(found, int) else None


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold the weights, whether or not they are there. Raises ConfigError for a bad index."""
    path = folder / INDEX
    if not _is_there(path):
        return [ONE_FILE]
    names = read_object(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ConfigError("model", str(path), "an index of weights: names and their files under 'weight_map'")
    for weight, name in names.items():
        plain = isinstance(name, str) and name.isprintable() and Path(name).name == name
        if not plain or not name.endswith(".safetensors"):
            raise ConfigError(
                "model", str(path), f"the name of a .safetensors file for {weight!r}", f"it says {name!r}"
            )
    return sorted(set(names.values()))


def stored_weights(folder: Path) -> dict[str, Stored]:
    """Every weight in the folder's safetensors files, from their headers alone. Raises ConfigError for a file that is
    no sound safetensors file, for one that lacks what the index says, and for a weight in two files: readers differ in
    which they take.
    """
    found: dict[str, Stored] = {}
    for path in sorted({*(folder / name for name in weight_files(folder)), *folder.glob("*.safetensors")}):
        for name, stored in _header(path).items():
            if name in found:
                also = f"{name!r} is in {found[name].file} too"
                raise ConfigError("model", str(path), "each weight in one file", f"{also}: take one of them away")
            found[name] = stored
    if _is_there(folder / INDEX):
        for name, file in read_object(folder / INDEX)["weight_map"].items():
            if name not in found or found[name].file != file:
                raise ConfigError("model", str(folder / INDEX), f"files that hold what it says; {file} lacks {name!r}")
    return found


def _header(path: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path)
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise ConfigError("model", str(path), "weights, not a git-LFS pointer", "git lfs pull")
        with safe_open(path, framework="pt") as weights:
            parts = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118  (it is no dictionary)
            return {n: Stored(path.name, tuple(p.get_shape()), str(p.get_dtype())) for n, p in parts.items()}
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError("model", str(path), "weights that safetensors reads", f"{said}; download it again") from None


def check_enough(stored: Mapping[str, Stored], layers: int | None, folder: Path) -> None:
    """Raise ConfigError for more layers than there are weights: nobody need wait until they are made."""
    if layers is not None and layers > len(stored):
        raise ConfigError(
            "model.num_hidden_layers", layers, f"no more layers than the {len(stored)} weights in {folder}"
        )  # fmt: skip


def check_numbers(stored: Mapping[str, Stored], wanted: int, folder: Path) -> None:
    """Raise ConfigError for weights that are not plain floating point numbers, or fewer than the config asks for.

    wanted: how many numbers the model of config.json has, shared ones once.
    """
    found = sum(weight.numbers for weight in stored.values())
    if found < wanted:
        raise ConfigError(
            "model", str(folder), "the weights of its config.json", f"that has {wanted} numbers, the files {found}"
        )
    for name, weight in stored.items():
        trained = name.endswith("weight") or (name.endswith("bias") and len(weight.shape) == 1)  # others are masks
        if trained and weight.dtype not in _FLOATS:
            expected = f"floating point numbers of 16 bits or more; {name} has {weight.dtype}"
            raise ConfigError("model", str(folder / weight.file), expected, "quantised weights cannot be trained")
