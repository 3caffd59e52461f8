"""The rollout clock (`sim.clock.simulate`) behind ``tppo plan``: seconds of a recipe's step on given accelerators."""

from __future__ import annotations

import numpy as np

from sim.clock.hardware import HARDWARE, Cluster, Efficiency, ModelProfile
from sim.clock.lengths import Lengths
from sim.clock.schedules import Task, rollout, schedule_of
from sim.clock.simulate import Machine, simulate
from tppo.algorithms.check import checked_parts
from tppo.errors import ConfigError
from tppo.plan.clock import TimeAnswer, TimeQuestion

STEPS = 4
"""Steps that are simulated, of slots as they are found long after the start of a run."""


def predict(question: TimeQuestion) -> TimeAnswer:
    """Raises ConfigError where the model does not fit into the engine's share of the memory."""
    config, shape = question.config, question.shape
    cap = config.rollout.max_response_tokens
    efficiency = Efficiency(kv_memory=config.vllm.memory_fraction, recompute=float(config.compute.recompute))
    lengths = Lengths.log_normal(question.median, question.sigma, cap)
    task = Task(lengths, config.rollout.slots, question.prompt)
    window = config.window if config.window < cap else None
    schedule = schedule_of(window, getattr(config.algorithm, "ignore_last", 0))
    parallel = config.vllm.tensor_parallel if config.engine == "vllm" else 1
    try:
        cluster = Cluster(_profile(question), HARDWARE[question.gpu], question.gpus, parallel, efficiency)
        report = simulate(schedule, task, Machine.of(cluster, max_rows=question.rows), steps=STEPS, seed=config.seed)
    except ValueError as error:  # no room for the weights, or for one response
        raise ConfigError("vllm.tensor_parallel", parallel, "a model and a response that fit", str(error)) from None
    phases = dict(report.phases)
    phases["update_policy"] *= config.policy.epochs
    beside = {aux.name: aux for aux in checked_parts(config.algorithm, config.rollout).auxiliaries}
    critic = beside.pop("critic", None)
    if critic is None or critic.optimizer is None:
        phases |= {"values": 0.0, "update_critic": 0.0}
    else:
        phases["update_critic"] *= critic.optimizer.epochs
    phases |= dict.fromkeys(beside, phases["logprobs"])  # one more pass of a network of the policy's size
    steps = rollout(schedule, task, seed=config.seed)
    in_flight = float(np.mean([(s.start_S + s.new_S).sum() for _, s in zip(range(STEPS), steps, strict=False)]))
    e, hardware = efficiency, HARDWARE[question.gpu]
    return TimeAnswer(
        phases=phases,
        in_flight=in_flight,
        tokens_per_second=float(report.tokens_R.sum()) / STEPS / sum(phases.values()),
        finished=float(report.finished_R.mean()),
        mfu=report.mfu,
        assumptions=(
            f"response lengths are {lengths.name} (mean {lengths.mean:.0f} tokens), whatever the schedule, and stay so "
            f"for the whole run; prompts have {question.prompt} tokens",
            f"a roofline of {shape.model_type} on {hardware.name} ({hardware.source}); it reaches {e.bandwidth:.0%} of "
            f"the memory's rate, {e.decode_flops:.0%} of peak arithmetic in generation and {e.train_flops:.0%} in "
            f"training, {e.decode_step_s * 1000:g} ms a decode step besides, {e.step_s:g} s a step for the rest",
            "assumed and not measured on this hardware; training balanced over all accelerators",
        ),
    )


def _profile(question: TimeQuestion) -> ModelProfile:
    """The clock's view of a transformers configuration."""
    c = question.shape
    heads = c.num_attention_heads
    return ModelProfile(
        c.model_type,
        c.num_hidden_layers,
        c.hidden_size,
        heads,
        getattr(c, "num_key_value_heads", None) or heads,
        c.intermediate_size,
        c.vocab_size,
        tied=c.tie_word_embeddings,
        qkv_bias=c.model_type == "qwen2",
        head_width=getattr(c, "head_dim", None),
        bytes_per_weight=2 if question.config.compute.dtype == "bfloat16" else 4,
    )
