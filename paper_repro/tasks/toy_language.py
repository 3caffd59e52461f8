"""The toy language as a task: a tiny transformer, partly able after a supervised warm start, rewarded for right final
answers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from paper_repro.models.toy_base import BaseModelConfig, base_model, qwen2_config
from sim import language
from sim.language.tokenizer import LETTERS
from tppo.config.run import ModelShape, RunConfig, TaskConfig
from tppo.data.workload import Workload
from tppo.errors import ConfigError
from tppo.ranks.ranks import Ranks
from tppo.types import Prompt

# Family, all letters, question mark, the letter to stop at, equals sign, and a start of up to three characters.
LONGEST_PROMPT = 1 + len(LETTERS) + 3 + 3


@dataclass(frozen=True)
class ToyLanguageTask(TaskConfig):
    """Problems of the toy language and the base model that starts on them."""

    model_fields: ClassVar[tuple[str, ...]] = ("task.base.layers", "task.base.width", "task.base.mlp_width")

    base: BaseModelConfig = field(default_factory=BaseModelConfig)
    """How the base model is made. It is made once and cached; training seeds do not change it."""

    def build(self, config: RunConfig, ranks: Ranks) -> Workload:
        """Policy and critic start from the same base model; the critic's head is zero."""
        from tppo.models.folder import critic_of, export, fill, policy_of

        folder = ranks.main_first(lambda: base_model(self.base))
        problems = self.base.language
        recompute = config.compute.recompute

        def prompt(split: language.Split, index: int, seed: int) -> Prompt:
            problem = problems.problem(split, index, seed)
            tokens = tuple(language.encode(problem.prompt))
            return Prompt(id=f"{split}/{seed}/{index}", tokens=tokens, truth=problem.answer, source=problem.family)

        def reward(prompt: Prompt, text: str) -> float:
            return language.grade(prompt.truth, text)

        def decode(tokens: Sequence[int]) -> str:
            return language.decode(tokens)

        return Workload(
            policy=policy_of(folder, recompute=recompute),
            critic=lambda: critic_of(folder, recompute=recompute),
            prompts=lambda i: prompt("train", i, config.seed),
            # The same held-out problems for every seed, so that runs are compared on equal terms.
            held_out=lambda i: prompt("heldout", i, 0),
            reward=reward,
            decode=decode,
            stop_ids=frozenset({language.EOS_ID}),
            save=lambda policy, to: export(policy, to, ranks),
            load=fill,
            fill=lambda model: fill(model, folder),
            folder=folder,
        )

    def validate(self, config: RunConfig) -> None:
        """Positions must suffice for the longest prompt and response."""
        room = self.base.max_positions - LONGEST_PROMPT
        cap = config.rollout.max_response_tokens
        if cap > room:
            raise ConfigError(
                "rollout.max_response_tokens",
                cap,
                f"at most {room}: task.base.max_positions less the longest prompt ({LONGEST_PROMPT} tokens)",
            )

    def shape(self) -> ModelShape:
        """Of the base model, which need not have been made for it."""
        return ModelShape(qwen2_config(self.base), LONGEST_PROMPT)
