"""Commands about runs: train, eval, export, replay."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from tppo.cli.arguments import own_flags, usage
from tppo.cli.fields import configure, override, say_unused
from tppo.errors import ConfigError, DataError
from tppo.files import check_writable, is_free, utf8_name, writing_to
from tppo.ranges import STEPS, Range, check_leaf

NOT_TRAINED = dict.fromkeys(
    ("steps", "algorithm", "policy", "checkpoint", "evaluation.every", "evaluation.stop_at", "rollout.slots",
     "rollout.group_size", "tensorboard", "phase_limit_seconds"),
    "an evaluation trains nothing",
)  # fmt: skip
NOT_GENERATED = dict.fromkeys(
    ("evaluation", "checkpoint", "engine", "vllm", "probe_bound", "grading_seconds", "tensorboard",
     "phase_limit_seconds"),
    "a replay generates, grades and saves nothing",
)  # fmt: skip


def train(known: argparse.Namespace, rest: list[str]) -> int:
    """Train a recipe."""
    config = configure(known, rest)
    say_unused(config, rest)
    from tppo.runs.folder import free_folder
    from tppo.runs.run import run

    if known.allow_change and not known.resume:
        raise ConfigError("allow-change", known.allow_change, "--resume with it", "a new run changes what it likes")
    if known.resume is None:
        out = known.out or free_folder(config.recipe)
    elif known.resume == "auto":
        out = known.out or Path("runs") / config.recipe
    else:
        out = known.out or Path(known.resume).absolute().parent.parent
    summary = run(
        config,
        out,
        progress=not known.quiet,
        resume=known.resume,
        allow_change=[name for name in known.allow_change.split(",") if name],
        dump=known.dump_rollouts,
    )
    print(json.dumps(summary, indent=2))
    print(f"written to {out}: config.json, metrics.jsonl, summary.json, curves.png, policy/")
    if summary.get("terminated"):
        saved = summary["checkpoint_step"]
        print(
            f"tppo: ended by SIGTERM; checkpoint: {'NOT SAVED' if saved is None else f'step {saved}'}", file=sys.stderr
        )
        return 1 if saved is None else 0
    return 130 if summary["interrupted"] else 0


def evaluate(known: argparse.Namespace, rest: list[str]) -> int:
    """Evaluate the policy of a run."""
    if known.run is None:
        if {"-h", "--help"} & set(rest):
            print(f"usage: {usage('eval RUN')}\n\nRUN is a folder that 'tppo train' wrote")
            return 0
        raise ConfigError("run", None, "the folder of a run")
    from tppo.config.stored import read_config

    stored = read_config(known.run)
    config = override(stored, rest, f"tppo eval {known.run}", own=own_flags(known))
    say_unused(config, rest, NOT_TRAINED)
    if config.task != stored.task:
        raise ConfigError("task", rest, "the task that the run was trained on", "evaluate without task options")
    if not os.path.isdir(known.run / "policy"):
        raise ConfigError("run", str(known.run), "a run with a policy/ folder", "it ended before one was written")
    from safetensors import SafetensorError

    from tppo.runs.build import build_trainer

    trainer = build_trainer(config)
    try:
        with utf8_name(known.run / "policy") as policy:
            trainer.workload.load(trainer.policy, policy)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{known.run / 'policy'} does not hold the weights of this run's policy: {reason}") from None
    result = trainer.evaluate()
    summary = result.summary() | trainer.workload.report(trainer.policy) | trainer.grader.report()
    print(json.dumps(summary | {"scores": _scores(list(result.solved.values()))}, indent=2))
    trainer.engine.close()
    return 0


def _scores(solved: list[tuple[bool, ...]]) -> dict[str, Any]:
    """avg@k, and pass@k for every power of two, with both kinds of 95% interval; None where not identifiable."""
    import numpy as np

    from tppo.evaluation.scores import avg_at, pass_at

    table = np.array(solved)
    ks = [2**i for i in range(1, 12) if 2**i <= table.shape[1]]
    known = lambda values: [None if v != v else v for v in values]  # noqa: E731
    return {
        score.name: {
            "value": score.value,
            "interval_same_problems": known(score.interval_sampling),
            "interval_new_problems": known(score.interval_total),
        }
        for score in [avg_at(table), *(pass_at(table, k) for k in ks)]
    }


def export(known: argparse.Namespace, rest: list[str]) -> int:
    """Write a checkpoint's policy as a model folder."""
    import torch

    from tppo.models.place import place
    from tppo.ranks.ranks import Ranks
    from tppo.runs.checkpoint.contents import load_network
    from tppo.runs.checkpoint.store import newest
    from tppo.runs.checkpoint.stored import read_checkpoint

    if not is_free(known.folder, "folder"):
        raise ConfigError("folder", str(known.folder), "a folder that is empty or does not exist")
    check_writable(known.folder, "folder")
    path = newest(known.checkpoint)
    config = read_checkpoint(path).config
    ranks = Ranks()
    workload = config.task.build(config, ranks)
    place(workload.policy, workload.fill, torch.device("cpu"), ranks)
    load_network("policy", workload.policy, path)
    with writing_to(known.folder, "folder"):
        workload.save(workload.policy, known.folder)
    print(f"{path} written to {known.folder}: {', '.join(sorted(p.name for p in known.folder.iterdir()))}")
    return 0


def replay(known: argparse.Namespace, rest: list[str]) -> int:
    """Train from recorded tokens."""
    from tppo.runs import replay as recorded
    from tppo.runs.checkpoint.store import newest
    from tppo.runs.checkpoint.stored import read_checkpoint

    check_leaf("steps", Annotated[int, Range(1, STEPS, unit="steps")], known.steps)
    path = newest(known.checkpoint)
    stored = read_checkpoint(path).config
    config = override(stored, rest, "tppo replay", own=own_flags(known))
    say_unused(config, rest, NOT_GENERATED)
    same = True
    for done in recorded.replay(path, known.dump, steps=known.steps, config=config):
        print(json.dumps(done.metrics | {f"same_{name}": equal for name, equal in done.same.items()}, indent=2))
        same = same and all(done.same.values())
    if config != stored:
        print("tppo: other values than the run's were asked for: other weights are expected", file=sys.stderr)
    elif not same:
        print("tppo: the weights are not those of the run; is this another machine or library?", file=sys.stderr)
    return 0 if same or config != stored else 1
