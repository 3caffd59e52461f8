"""Small workloads and models for the tests of the loop."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from paper_repro.recipes.small import token_mdp
from tppo.config.run import RunConfig, validate
from tppo.engines.base import Engine
from tppo.loop.metrics import Step
from tppo.loop.trainer import Trainer
from tppo.ranks.ranks import Ranks
from tppo.runs.build import build_engine, networks
from tppo.types import Prompt, Response, Status

SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def tiny_lm(
    kind: str = "qwen2",
    *,
    tied: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 8,
    vocab: int = 23,
) -> Any:
    """A random causal LM of one of three architectures, with sharper logits than the default initialisation gives."""
    torch.manual_seed(seed)
    classes = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }
    config_class, model_class = classes[kind]
    sizes = SIZES | {"vocab_size": vocab, "hidden_size": 4 * head_dim, "tie_word_embeddings": tied}
    if kind == "qwen3":
        sizes["head_dim"] = 2 * head_dim
    model = model_class(config_class(**sizes)).to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0) if p.ndim == 2 else None
    return model


def response(
    uid: int,
    tokens: Sequence[int],
    *,
    windows: Sequence[int] = (0,),
    status: Status = Status.EOS,
    reward: float | None = 1.0,
    prompt: Sequence[int] = (1, 2, 3),
    version: int = 0,
) -> Response:
    """A response as it stands after its last window."""
    r = Response(uid=uid, group=uid, prompt=Prompt(id=f"p{uid}", tokens=tuple(prompt)))
    bounds = [*windows, len(tokens)]
    for k, (first, end) in enumerate(itertools.pairwise(bounds)):
        r.extend(tokens[first:end], [-1.0 - 0.01 * i for i in range(first, end)], version + k)
    r.status = status
    r.reward = reward if status.finished else None
    return r


def mixed_responses(seed: int = 0, count: int = 7, vocab: int = 23) -> list[Response]:
    """Ragged: finished and unfinished, one and several windows, one empty."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for uid in range(count):
        length = int(torch.randint(1, 14, (), generator=g))
        tokens = torch.randint(0, vocab, (length,), generator=g).tolist()
        prompt = torch.randint(0, vocab, (int(torch.randint(1, 6, (), generator=g)),), generator=g).tolist()
        windows = [0] if length < 4 or uid % 2 else [0, length // 2]
        status = [Status.EOS, Status.UNFINISHED, Status.LENGTH, Status.EOS][uid % 4]
        out.append(response(uid + 10, tokens, windows=windows, status=status, reward=float(uid % 3), prompt=prompt))
    out.append(response(99, [], status=Status.EMPTY, reward=0.0))
    return out


def small_token_mdp(**changes: Any) -> RunConfig:
    """The token-mdp recipe, small enough to step in milliseconds."""
    config = token_mdp().with_values(
        steps=5, rollout__slots=16, rollout__max_response_tokens=24, evaluation__every=0, evaluation__problems=8,
        algorithm__warmup_steps=1, policy__mini_batch=8, algorithm__critic__mini_batch=8,
    )  # fmt: skip
    return config.with_values(**changes)


def trainer_with(
    config: RunConfig, wrap: Callable[[Engine], Engine] = lambda engine: engine, **changes: Any
) -> Trainer:
    """A trainer with other parts of the workload, by name, and its engine inside another one."""
    validate(config)
    ranks = Ranks()
    workload = dataclasses.replace(config.task.build(config, ranks), **changes)
    models = networks(config, workload)
    return Trainer(config, workload, models, wrap(build_engine(config, workload, ranks=ranks)), ranks)


def timeless(step: Step) -> dict[str, Any]:
    """Metrics of a step that two runs of the same thing share."""
    return {name: value for name, value in step.metrics.items() if "second" not in name}


def states_equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Bit for bit."""
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def leaves(config: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted path, annotated type, value) of every leaf of a configuration."""
    from tppo.ranges import fields_of

    out = []
    for name, hint, value in fields_of(config):
        here = f"{path}.{name}" if path else name
        out += leaves(value, here) if dataclasses.is_dataclass(value) else [(here, hint, value)]
    return out


class Largest(TorchDispatchMode):
    """Records the largest number of elements any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out
