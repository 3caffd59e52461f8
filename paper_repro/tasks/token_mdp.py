"""A token MDP as a task: tabular policy and critic, rewards from walking the table, exact returns in the summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from sim import exact
from sim.mdp import families
from sim.mdp.table import TokenMDP
from tppo.config.need import Need
from tppo.config.run import RunConfig, TaskConfig
from tppo.data.workload import Workload
from tppo.engines.memory import EMBEDDED_ROWS
from tppo.errors import ConfigError
from tppo.ranges import SEED, Range
from tppo.ranks.ranks import Ranks
from tppo.types import Prompt


@dataclass(frozen=True)
class Family:
    """How the tables of a family are made, and what can be said of one without making it."""

    table: Callable[[TokenMDPTask, int], TokenMDP]
    """(task, longest response) to the table."""
    states: Callable[[TokenMDPTask], int]
    """States of the table."""
    fewest: Callable[[TokenMDPTask], int]
    """Tokens of the shortest response with a reward; a lower cap makes every policy worth nothing."""
    idle: tuple[str, ...]
    """Fields of the task that the family does not read."""


FAMILIES = {
    "reasoning_ladder": Family(
        table=lambda task, cap: families.reasoning_ladder(
            task.size, task.num_tokens, DETOUR, cap, num_prompts=task.num_prompts, seed=task.mdp_seed
        ),
        states=lambda task: task.num_prompts * (task.size + 1 + task.size * DETOUR),
        fewest=lambda task: task.size + 1,
        idle=("tail",),
    ),
    "combination_lock": Family(
        table=lambda task, cap: families.combination_lock(task.size, task.num_tokens, cap, seed=task.mdp_seed),
        states=lambda task: task.size + 1,
        fewest=lambda task: task.size + 1,
        idle=("tail", "num_prompts"),
    ),
    "tailed_length": Family(
        table=lambda task, cap: families.tailed_length(task.tail, task.size, task.num_tokens, cap, seed=task.mdp_seed),
        states=lambda task: task.size + 1,
        fewest=lambda task: 2,
        idle=("num_prompts",),
    ),
}
DETOUR = 4
"""Deepest detour of a ladder."""
ENTRY_BYTES = 100
"""Of each state and token: the simulator's tables, those of policy, critic and engine, and what training keeps."""


@dataclass(frozen=True)
class TokenMDPTask(TaskConfig):
    """Which table, and how good the policy is at the start."""

    family: Literal["reasoning_ladder", "combination_lock", "tailed_length"] = "reasoning_ladder"
    """Family of deterministic tables; see sim/mdp/families.py."""
    size: Annotated[int, Range(1, 1_000_000)] = 5
    """Rungs of the ladder, length of the lock's combination, or longest demanded length."""
    num_tokens: Annotated[int, Range(2, 1_000_000)] = 5
    """Tokens of the table."""
    num_prompts: Annotated[int, Range(1, 1_000_000)] = 4
    """Separate ladders, one a prompt; the other families take their prompts from the start states."""
    tail: Annotated[float, Range(1e-6, 100)] = 1.0
    """Pareto index of the demanded length (tailed_length only)."""
    mdp_seed: Annotated[int, Range(0, SEED)] = 0
    """Of the table."""
    base_skill: Annotated[float, Range(0, 1)] = 0.4
    """The policy at the start plays a best token this often, otherwise a random one."""
    base_stop_prob: Annotated[float, Range(0, 1)] = 0.1
    """Share of stop tokens among the random ones."""

    def mdp(self, horizon: int) -> TokenMDP:
        """The table."""
        return FAMILIES[self.family].table(self, horizon)

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
            backups = {
                "exact_return": exact.iter_evaluate(mdp, exact.softmax(logits)),
                "exact_return_base": exact.iter_evaluate(mdp, exact.softmax(self.base_logits(mdp))),
                "optimal_return": exact.iter_optimum(mdp),
            }
            returns = {name: float(mdp.initial_S @ exact.at_start(found).V_S) for name, found in backups.items()}
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
        """The table itself must accept its numbers, and some response must pay. No table of this size is made."""
        cap, family = config.rollout.max_response_tokens, FAMILIES[self.family]
        try:
            mdp = replace(self, size=1, num_prompts=1, num_tokens=min(self.num_tokens, 8)).mdp(cap)
        except ValueError as error:
            name, _, said = str(error).partition(": ")
            found = getattr(self, name, self.family)
            raise ConfigError(f"task.{name}", found, said.partition("expected ")[2].rstrip(".")) from None
        if not (mdp.deterministic and mdp.ends_only_by_stop_token):
            raise ConfigError("task.family", self.family, "a table whose state is a function of the tokens so far")
        if family.fewest(self) > cap:
            raise ConfigError(
                "rollout.max_response_tokens",
                cap,
                f"at least {family.fewest(self)}, the shortest response with a reward",
                "no policy could earn anything; raise it, or lower task.size",
            )

    def needs(self, config: RunConfig) -> tuple[Need, ...]:
        """Of the table, and of the rows of logits that generation and a micro-batch hold at a time."""
        states, tokens = FAMILIES[self.family].states(self), self.num_tokens
        rows = min(EMBEDDED_ROWS, max(config.rollout.slots, config.evaluation.problems * config.evaluation.samples))
        micro = min(config.compute.micro_batch_tokens, config.rollout.slots * config.window)
        biggest = sorted(
            set(self.__dataclass_fields__) & {"size", "num_tokens", "num_prompts"} - set(FAMILIES[self.family].idle),
            key=lambda name: -getattr(self, name),
        )
        return (
            Need(f"a table of {states} states and {tokens} tokens", states * tokens * ENTRY_BYTES,
                 tuple(f"task.{name}" for name in biggest)),
            Need(f"logits of {rows} rows, and of a micro-batch of {micro} tokens, over {tokens} tokens",
                 tokens * (rows * 24 + micro * 8), ("task.num_tokens", "compute.micro_batch_tokens")),
        )  # fmt: skip

    def idle(self, config: RunConfig) -> Mapping[str, str]:
        """What only a transformer, or another family, reads."""
        found = {f"task.{name}": f"{self.family} does not read it" for name in FAMILIES[self.family].idle}
        return found | {"compute.recompute": "a table of logits has no activations to compute again"}
