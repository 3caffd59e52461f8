"""A token MDP as a task: tabular policy and critic, rewards from walking the table, exact returns in the summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from sim import exact
from sim.mdp import families
from sim.mdp.table import TokenMDP
from tppo.config.run import RunConfig, TaskConfig
from tppo.data.workload import Workload
from tppo.errors import ConfigError
from tppo.ranges import Range
from tppo.ranks.ranks import Ranks
from tppo.types import Prompt


@dataclass(frozen=True)
class TokenMDPTask(TaskConfig):
    """Which table, and how good the policy is at the start."""

    family: Literal["reasoning_ladder", "combination_lock", "tailed_length"] = "reasoning_ladder"
    """Family of deterministic tables; see sim/mdp/families.py."""
    size: Annotated[int, Range(1)] = 5
    """Rungs of the ladder, length of the lock's combination, or longest demanded length."""
    num_tokens: Annotated[int, Range(2)] = 5
    """Tokens of the table."""
    num_prompts: Annotated[int, Range(1)] = 4
    """Separate ladders, one a prompt; the other families take their prompts from the start states."""
    tail: Annotated[float, Range(0, above=True)] = 1.0
    """Pareto index of the demanded length (tailed_length only)."""
    mdp_seed: Annotated[int, Range(0)] = 0
    """Of the table."""
    base_skill: Annotated[float, Range(0, 1)] = 0.4
    """The policy at the start plays a best token this often, otherwise a random one."""
    base_stop_prob: Annotated[float, Range(0, 1)] = 0.1
    """Share of stop tokens among the random ones."""

    def mdp(self, horizon: int) -> TokenMDP:
        """The table."""
        if self.family == "reasoning_ladder":
            return families.reasoning_ladder(
                self.size, self.num_tokens, horizon=horizon, num_prompts=self.num_prompts, seed=self.mdp_seed
            )
        if self.family == "combination_lock":
            return families.combination_lock(self.size, self.num_tokens, horizon, seed=self.mdp_seed)
        return families.tailed_length(self.tail, self.size, self.num_tokens, horizon, seed=self.mdp_seed)

    def base_logits(self, mdp: TokenMDP) -> np.ndarray:
        """Logits [S, A] of the policy at the start."""
        policy = exact.noisy_policy(mdp, self.base_skill, stop_prob=self.base_stop_prob)
        return np.log(np.maximum(policy, 1e-6))

    def build(self, config: RunConfig, ranks: Ranks) -> Workload:
        """Tabular models: a policy of little skill, and V = 0."""
        import torch
        from safetensors.torch import load_file, save_file

        from tppo.models.base import PolicyModel
        from tppo.models.tabular import TabularCritic, TabularPolicy
        from tppo.ranks.shard import full, put

        mdp = self.mdp(config.rollout.max_response_tokens)
        table = torch.from_numpy(mdp.next_SAK[:, :, 0].copy())
        starts = np.cumsum(mdp.initial_S)

        def prompt(split: int, i: int) -> Prompt:
            draw = np.random.default_rng([config.seed, split, i]).random()
            state = int(np.searchsorted(starts, draw * starts[-1], side="right"))
            return Prompt(id=f"{mdp.name}/{split}/{i}", tokens=(mdp.num_tokens + state,), truth=str(state))

        def reward(prompt: Prompt, text: str) -> float:
            return float(mdp.walk(int(prompt.truth), [int(word) for word in text.split()]).reward)

        def decode(tokens: Sequence[int]) -> str:
            return " ".join(map(str, tokens))

        def save(policy: PolicyModel, folder: Path) -> None:
            assert isinstance(policy, TabularPolicy)
            logits = full(policy.logits_SA.detach())
            if ranks.main:
                folder.mkdir(parents=True, exist_ok=True)
                save_file({"logits_SA": logits.cpu().contiguous()}, folder / "policy.safetensors")
            ranks.barrier()

        def load(policy: PolicyModel, folder: Path) -> None:
            assert isinstance(policy, TabularPolicy)
            put(policy.logits_SA, load_file(folder / "policy.safetensors")["logits_SA"])

        def report(policy: PolicyModel) -> dict[str, Any]:
            assert isinstance(policy, TabularPolicy)
            logits = full(policy.logits_SA.detach()).double().cpu().numpy() / config.rollout.temperature
            returns = {
                "exact_return": float(exact.evaluate(mdp, exact.softmax(logits)).J),
                "exact_return_base": float(exact.evaluate(mdp, exact.softmax(self.base_logits(mdp))).J),
                "optimal_return": float(exact.optimum(mdp).J),
            }
            return returns | {"share_of_optimum": returns["exact_return"] / returns["optimal_return"]}

        return Workload(
            policy=TabularPolicy(table, torch.from_numpy(self.base_logits(mdp)).float()),
            critic=lambda: TabularCritic(table, torch.zeros(len(table))),
            prompts=lambda i: prompt(0, i),
            held_out=lambda i: prompt(1, i),
            reward=reward,
            decode=decode,
            stop_ids=frozenset(int(t) for t in mdp.stop_tokens),
            save=save,
            load=load,
            report=report,
        )

    def validate(self, config: RunConfig) -> None:
        """The table itself must accept its size."""
        try:
            mdp = self.mdp(config.rollout.max_response_tokens)
        except ValueError as error:
            found = f"{self.family}, size {self.size}, {self.num_tokens} tokens"
            raise ConfigError("task", found, "a valid table", str(error)) from None
        if not (mdp.deterministic and mdp.ends_only_by_stop_token):
            raise ConfigError("task.family", self.family, "a table whose state is a function of the tokens so far")
