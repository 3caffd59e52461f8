"""Qwen2.5 base models of three sizes, up to the paper's, on DAPO-Math-17k, judged on AIME 2024 by avg@32.

Where each number comes from:

- CONFIRMED by T-PPO's abstract and figure 1 (arXiv 2506.15050): Qwen2.5-32B base, AIME 2024, pass@1 averaged over 32
  samples. By VAPO (arXiv 2504.05118), whose setting T-PPO is compared in: 512 prompts of 16 responses, mini-batches of
  512 responses, AdamW with 2e-6 for the critic, evaluation at temperature 1.0 and top-p 0.7.
- PORT: in the authors' public port of T-PPO, unconfirmed for the paper: window 8192, cap 24576 (its PPO script; its
  T-PPO script has 8192), 8e-7 for the policy, weight decay 0.1, and all defaults of ``tppo.algorithms.tppo``.
- DAPO: the public recipe of DAPO (arXiv 2503.14476): data, prompt, clipping of the gradient norm at 1.0.
- OURS: our choice, made without a run at that scale: everything that is not named above, and every number of the
  smaller sizes where it differs from 32B's. Those keep 16 updates a step, three or four windows to a cap, and shrink
  the rest with the model.

A PPO twin differs in the algorithm alone: whole responses, plain GAE, no token filter, as VC-PPO and VAPO.

The base models come with a ChatML chat template, which is applied as DAPO does; they end with <|endoftext|>. Nothing is
downloaded before a run begins.
"""

from __future__ import annotations

from paper_repro.recipes.recipe import recipe
from paper_repro.recipes.small import ppo_twin
from paper_repro.tasks.pretrained import MathDataTask
from tppo.algorithms import TPPO
from tppo.algorithms.auxiliaries.critic import WindowedCriticOptions
from tppo.config.run import CheckpointOptions, Compute, Evaluation, Optimizer, Rollout, RunConfig, VllmOptions

MAX_PROMPT = 2048
"""[tokens] OURS: DAPO's prompts are shorter; longer ones are dropped and counted."""


@recipe("qwen2.5-32b-tppo")
def qwen25_32b_tppo(name: str) -> RunConfig:
    """T-PPO on Qwen2.5-32B base, the paper's experiment: 8 nodes of 8 GPUs. Never run here."""
    return _recipe(
        name,
        model="Qwen/Qwen2.5-32B",  # CONFIRMED
        window=8192,  # PORT
        cap=24576,  # PORT
        slots=8192,  # 512 x 16, CONFIRMED for VAPO and DAPO, unconfirmed for T-PPO
        mini_batch=512,  # CONFIRMED for VAPO and in the port
        lr=8e-7,  # PORT; VAPO has 1e-6
        steps=320,  # OURS: 16 updates a step make 5120; VAPO reports its score after "5000 steps"
        every=10,  # OURS
        compute=_compute(micro_batch_tokens=32768, logit_chunk_tokens=1024),  # OURS: one longest response fits
        # OURS. Eight GPUs hold one copy. The trainer keeps float32 weights and moments of both models on its GPUs:
        # 16 bytes for each of 2 x 32.8e9 weights, over 64 GPUs 16 GB of each. The engine may take what that leaves.
        vllm=_vllm(cap=24576, tensor_parallel=8, max_rows=256, memory_fraction=0.7),
        grader_workers=8,
        phase_limit=7200.0,  # OURS: PPO generates whole responses for longer than half an hour
    )


@recipe("qwen2.5-32b-ppo")
def qwen25_32b_ppo(name: str) -> RunConfig:
    """PPO on Qwen2.5-32B base as VC-PPO and VAPO set it up: whole responses, all else as in T-PPO. Never run here."""
    return ppo_twin(qwen25_32b_tppo(), name)


@recipe("qwen2.5-7b-tppo")
def qwen25_7b_tppo(name: str) -> RunConfig:
    """T-PPO on Qwen2.5-7B base: one node of 8 GPUs. All sizes our choice."""
    return _recipe(
        name,
        model="Qwen/Qwen2.5-7B",
        window=4096,
        cap=12288,
        slots=2048,  # 128 x 16
        mini_batch=128,
        lr=8e-7,
        steps=320,
        every=10,
        compute=_compute(micro_batch_tokens=16384, logit_chunk_tokens=1024),
        # 15 GB of weights: a GPU holds a copy. Over 8 GPUs the trainer keeps 30 GB of each.
        vllm=_vllm(cap=12288, tensor_parallel=1, max_rows=256, memory_fraction=0.5),
        grader_workers=4,
        phase_limit=3600.0,
    )


@recipe("qwen2.5-7b-ppo")
def qwen25_7b_ppo(name: str) -> RunConfig:
    """PPO on Qwen2.5-7B base: whole responses, all else as in T-PPO."""
    return ppo_twin(qwen25_7b_tppo(), name)


@recipe("qwen2.5-0.5b-tppo")
def qwen25_05b_tppo(name: str) -> RunConfig:
    """T-PPO on Qwen2.5-0.5B base: one GPU. All sizes our choice."""
    return _recipe(
        name,
        model="Qwen/Qwen2.5-0.5B",
        window=1024,
        cap=4096,
        slots=1024,  # 64 x 16
        mini_batch=64,
        lr=1e-6,
        steps=320,
        every=20,
        compute=_compute(micro_batch_tokens=16384, logit_chunk_tokens=1024),
        # 1 GB of weights; the trainer keeps 16 GB, and activations beside it.
        vllm=_vllm(cap=4096, tensor_parallel=1, max_rows=512, memory_fraction=0.4),
        grader_workers=4,
        phase_limit=1800.0,
    )


@recipe("qwen2.5-0.5b-ppo")
def qwen25_05b_ppo(name: str) -> RunConfig:
    """PPO on Qwen2.5-0.5B base: whole responses, all else as in T-PPO."""
    return ppo_twin(qwen25_05b_tppo(), name)


def _recipe(
    name: str,
    *,
    model: str,
    window: int,
    cap: int,
    slots: int,
    mini_batch: int,
    lr: float,
    steps: int,
    every: int,
    compute: Compute,
    vllm: VllmOptions,
    grader_workers: int,
    phase_limit: float,
) -> RunConfig:
    """What all sizes share. Lengths in tokens (window, cap), responses (slots, mini_batch), seconds (phase_limit)."""
    return RunConfig(
        recipe=name,
        task=MathDataTask(
            model=model,
            max_prompt_tokens=MAX_PROMPT,
            grader_workers=grader_workers,
        ),  # DAPO-Math-17k: DAPO; for T-PPO unconfirmed. AIME 2024: CONFIRMED
        steps=steps,
        algorithm=TPPO(  # defaults: PORT, named field by field in tppo/algorithms/tppo.py
            window=window,
            # 2e-6: CONFIRMED for VAPO and in the port; 20: PORT, its PPO script; unit unclear
            critic=WindowedCriticOptions(lr=2e-6, mini_batch=mini_batch, warmup_updates=20),
        ),
        rollout=Rollout(
            slots=slots,
            group_size=16,  # CONFIRMED for VAPO, DAPO and in the port
            max_response_tokens=cap,
            temperature=1.0,  # DAPO; for T-PPO unconfirmed
        ),
        policy=Optimizer(lr=lr, mini_batch=mini_batch, warmup_updates=20),  # 20: PORT, its PPO script; unit unclear
        compute=compute,
        evaluation=Evaluation(every=every, problems=30, samples=32, temperature=1.0, top_p=0.7),  # CONFIRMED for VAPO
        checkpoint=CheckpointOptions(every=10, keep=2),
        engine="vllm",
        vllm=vllm,
        phase_limit_seconds=phase_limit,
    )


def _compute(*, micro_batch_tokens: int, logit_chunk_tokens: int) -> Compute:
    """Bfloat16 over float32 master weights, rows without padding, activations computed again in the backward pass."""
    return Compute(
        micro_batch_tokens=micro_batch_tokens,
        logit_chunk_tokens=logit_chunk_tokens,
        packed=True,
        dtype="bfloat16",
        recompute=True,
    )


def _vllm(*, cap: int, tensor_parallel: int, max_rows: int, memory_fraction: float) -> VllmOptions:
    """Weights in bfloat16, graphs captured, memory given back while the trainer works."""
    return VllmOptions(
        dtype="bfloat16",
        max_rows=max_rows,
        memory_fraction=memory_fraction,
        tensor_parallel=tensor_parallel,
        eager=False,
        sleep=True,
        max_model_tokens=MAX_PROMPT + cap,
    )
