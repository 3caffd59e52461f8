"""Recipes: functions that return one frozen configuration. Found by the command line through entry points.

Tuned for T-PPO with fewer dropped tokens for a shorter window and a shorter warm-up for a shorter run. Lambda stays at
its floor of 0.95: with alpha 0.05 it adapts to lengths beyond 400 tokens only. A PPO twin differs by the algorithm.
"""

from __future__ import annotations

import dataclasses

from paper_repro.recipes.recipe import recipe
from paper_repro.tasks.pretrained import WordProblemTask
from paper_repro.tasks.token_mdp import TokenMDPTask
from paper_repro.tasks.toy_language import ToyLanguageTask
from paper_repro.tasks.word_problems import WordProblems
from tppo.algorithms import PPO, TPPO
from tppo.algorithms.auxiliaries.critic import WindowedCriticOptions
from tppo.config.registry import with_algorithm
from tppo.config.run import Compute, Evaluation, Optimizer, Rollout, RunConfig, VllmOptions


@recipe("token-mdp")
def token_mdp(name: str) -> RunConfig:
    """T-PPO on a reasoning ladder: a table of logits, with the exact return of every policy known."""
    policy = Optimizer(lr=0.05, weight_decay=0.0, mini_batch=32, grad_clip=None)
    critic = WindowedCriticOptions(lr=0.05, weight_decay=0.0, mini_batch=32, grad_clip=None)
    return RunConfig(
        recipe=name,
        task=TokenMDPTask(),
        steps=100,
        algorithm=TPPO(window=8, ignore_last=2, warmup_steps=5, critic=critic),
        rollout=Rollout(slots=128, group_size=4, max_response_tokens=64),
        policy=policy,
        evaluation=Evaluation(every=25, problems=512),
    )


@recipe("token-mdp-ppo")
def token_mdp_ppo(name: str) -> RunConfig:
    """PPO on the same reasoning ladder: whole responses every step."""
    return ppo_twin(token_mdp(), name)


@recipe("toy-language")
def toy_language(name: str) -> RunConfig:
    """T-PPO on a toy language: a tiny transformer from a partly able base model to a reliable one, in minutes."""
    return RunConfig(
        recipe=name,
        task=ToyLanguageTask(),
        steps=100,
        algorithm=TPPO(
            window=32,
            ignore_last=4,
            warmup_steps=5,
            critic=WindowedCriticOptions(lr=1e-3, weight_decay=0.0, beta2=0.99, mini_batch=64),
        ),
        rollout=Rollout(slots=256, group_size=4, max_response_tokens=192),
        policy=Optimizer(lr=2e-4, weight_decay=0.0, beta2=0.99, mini_batch=64),
        compute=Compute(micro_batch_tokens=1024),
        evaluation=Evaluation(every=10, problems=512),
        vllm=VllmOptions(memory_fraction=0.2),
    )


@recipe("toy-language-ppo")
def toy_language_ppo(name: str) -> RunConfig:
    """PPO on the same toy language, from the same base model: whole responses every step."""
    return ppo_twin(toy_language(), name)


@recipe("smollm2-135m")
def smollm2_135m(name: str) -> RunConfig:
    """T-PPO on word problems with SmolLM2-135M-Instruct: a real pretrained model, an hour on a CPU."""
    return RunConfig(
        recipe=name,
        task=WordProblemTask(
            system="Solve the problem.",
            example_question="Sam has 9 pens and loses 3. How many pens?",
            example_answer="9 - 3 = 6. Answer: 6",
            max_prompt_tokens=128,
            made=WordProblems(largest=12),
        ),
        steps=40,
        algorithm=TPPO(
            window=24,
            ignore_last=2,
            warmup_steps=3,
            critic=WindowedCriticOptions(lr=5e-5, weight_decay=0.0, beta2=0.99, mini_batch=16),
        ),
        rollout=Rollout(slots=32, group_size=2, max_response_tokens=64, temperature=0.7),
        policy=Optimizer(lr=1e-5, weight_decay=0.0, beta2=0.99, mini_batch=16),
        compute=Compute(micro_batch_tokens=1024, logit_chunk_tokens=512),
        evaluation=Evaluation(every=10, problems=256, temperature=0.7),
        engine="vllm",
        vllm=VllmOptions(max_rows=64, memory_fraction=0.2, max_model_tokens=256),
    )


def ppo_twin(config: RunConfig, name: str) -> RunConfig:
    """The same with whole responses, under a name of its own."""
    return dataclasses.replace(with_algorithm(config, PPO), recipe=name)
