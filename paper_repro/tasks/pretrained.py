"""Pretrained language models as tasks: prompts through the model's chat template, answers judged by math-verify.

One class for problems from files or the hub, at any scale; one for word problems made by rule, for a run in an hour.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from paper_repro.models.known import SMOLLM2, model_folder, model_shape
from paper_repro.tasks.word_problems import WordProblems
from tppo.config.need import Need
from tppo.config.run import ModelShape, RunConfig, TaskConfig
from tppo.data.catalogue import aime_2024, dapo_math_17k
from tppo.data.problems import check_overlap, load_problems
from tppo.data.prompts import PromptStream, to_prompts
from tppo.data.sources import SLOT, DataSource, OnBadRow
from tppo.data.workload import Workload
from tppo.environment import warn
from tppo.errors import ConfigError, renamed
from tppo.grading.reward import Reward
from tppo.ranges import SECONDS, TOKENS, WORKERS, Range
from tppo.ranks.ranks import Ranks
from tppo.types import Prompt

if TYPE_CHECKING:
    from tppo.data.problems import Problem

Encoder = Callable[[Sequence["Problem"], str, OnBadRow], list[Prompt]]
"""(problems, prompt template, what to do about overlong ones) to prompts."""
Prompts = Callable[[int], Prompt]


WORKER_BYTES = 16 * 2**20
"""Of each process that judges answers, beside what it shares with the others; a low estimate."""


@dataclass(frozen=True)
class PretrainedTask(TaskConfig):
    """A model, how it is asked, and how it is judged. Subclasses bring the problems."""

    model_fields: ClassVar[tuple[str, ...]] = ("task.model",)

    model: str = SMOLLM2
    """'smollm2-135m', a model folder, a name on the hub, or 'shrunken:NAME' for a small random model."""
    chat: bool = True
    """Ask through the model's chat template; False is plain text, the question alone, for a base model."""
    system: str = ""
    """System message; empty leaves it to the model's chat template."""
    example_question: str = ""
    """A worked example before every problem, as an earlier turn of the conversation; empty is none."""
    example_answer: str = ""
    """The answer of the worked example."""
    max_prompt_tokens: Annotated[int, Range(1, TOKENS, unit="tokens")] = 1024
    """Longest prompt, chat template and example included."""
    grader_workers: Annotated[int, Range(1, WORKERS, unit="processes")] = 1
    """Processes that judge answers."""
    grader_seconds: Annotated[float, Range(0, SECONDS, above=True, unit="s")] = 10.0
    """Limit of one verdict; a text that takes longer scores zero and is counted."""
    grader_memory: Annotated[int, Range(64, 2**20, unit="MiB")] = 1024
    """Address space of a process that judges, its imports included; a text that needs more scores zero."""
    reward: str = ""
    """FILE.py:FUNCTION or module:FUNCTION of (prompt, text) to the score, called in the processes that judge; empty is
    math-verify on the last answer."""
    reward_in_process: bool = False
    """Trust that function: call it in the run's own process, without a limit of time or memory."""
    reward_sha256: str = ""
    """Of the function's file when the run began; noted by the run, so that a change is noticed when it is resumed."""

    def __post_init__(self) -> None:
        """A relative file is one of the folder in which the task is made; the run may be resumed from another."""
        if ".py:" in self.reward:
            with contextlib.suppress(OSError):  # of a working directory that is gone
                object.__setattr__(self, "reward", str(Path(self.reward).absolute()))

    def problems(self, config: RunConfig, encode: Encoder, ranks: Ranks) -> tuple[Prompts, Prompts, list[str]]:
        """Training prompts, held-out prompts, and reference answers to check before training."""
        raise NotImplementedError(f"{type(self).__name__} must define problems()")

    def build(self, config: RunConfig, ranks: Ranks) -> Workload:
        """Policy and critic from the same weights; the critic's head is zero, so V = 0 at the start."""
        from tppo.data.chat import ChatTokenizer
        from tppo.models.base import PolicyModel
        from tppo.models.contents import context_length
        from tppo.models.folder import critic_of, export, fill, policy_of

        folder = ranks.main_first(lambda: model_folder(self.model, field="task.model"))
        before = [("system", self.system)] if self.system else []
        if self.example_question:
            before += [("user", self.example_question), ("assistant", self.example_answer)]
        chat = ChatTokenizer(folder, before, chat=self.chat, moment=config.started)
        self._check_room(config, context_length(folder))

        def encode(problems: Sequence[Problem], template: str, on_overlong: OnBadRow) -> list[Prompt]:
            if len(problems) > 1:
                chat.prepare([template.replace(SLOT, problem.question) for problem in problems])
            return to_prompts(
                problems,
                chat.encode,
                template=template,
                max_prompt_tokens=self.max_prompt_tokens,
                on_overlong=on_overlong,
            ).prompts

        prompts, held_out, truths = self.problems(config, encode, ranks)

        def save(policy: PolicyModel, folder: Path) -> None:
            export(policy, folder, ranks)
            if ranks.main:
                chat.save(folder)

        recompute = config.compute.recompute
        return Workload(
            policy=policy_of(folder, recompute=recompute),
            critic=lambda: critic_of(folder, recompute=recompute),
            prompts=prompts,
            held_out=held_out,
            reward=self.judge(truths),
            decode=chat.decode,
            stop_ids=chat.stop_ids,
            save=save,
            load=fill,
            fill=lambda model: fill(model, folder),
            folder=folder,
        )

    def judge(self, truths: Sequence[str]) -> Reward:
        """The reward function, or mathematics with these reference answers. Raises ConfigError, DataError."""
        from tppo.grading import isolated
        from tppo.grading.mathematics import MathReward

        field, memory = "task.reward", self.grader_memory * 2**20
        if self.reward and self.reward_sha256 not in ("", isolated.digest_of(self.reward, field)):
            warn(f"{self.reward} is not what it was when the run began; it judges as it is now")
        if self.reward_in_process:
            return isolated.load(self.reward, field)
        workers, seconds = self.grader_workers, self.grader_seconds
        if self.reward:
            return isolated.IsolatedReward(self.reward, workers=workers, seconds=seconds, memory=memory, field=field)
        return MathReward(truths, workers=workers, seconds=seconds, memory=memory)

    def pinned(self) -> Self:
        """With the digest of the reward function's file."""
        from tppo.grading.isolated import digest_of

        digest = digest_of(self.reward, "task.reward") if self.reward else ""
        if self.reward_sha256 not in ("", digest):
            expected = f"{digest!r}, of the file as it is now"
            raise ConfigError("task.reward_sha256", self.reward_sha256, expected, "leave it out, the run notes it")
        return replace(self, reward_sha256=digest)

    def validate(self, config: RunConfig) -> None:
        """The reward function is where it is said to be. A worked example is a question and an answer; the engine has
        room for prompt and response.
        """
        if self.reward:
            from tppo.grading.isolated import place_of

            place_of(self.reward, "task.reward")
        elif self.reward_in_process or self.reward_sha256:
            field = "reward_in_process" if self.reward_in_process else "reward_sha256"
            raise ConfigError(
                f"task.{field}", getattr(self, field), "task.reward with it", "name a function, or leave it out"
            )
        if bool(self.example_question) != bool(self.example_answer):
            raise ConfigError(
                "task.example_answer", self.example_answer, "an answer to task.example_question, or both empty"
            )
        for name in ("system", "example_question"):
            if not self.chat and (text := getattr(self, name)):
                raise ConfigError(f"task.{name}", text, "no such turn with task.chat = False: plain text has no turns")
        needed, room = self.max_prompt_tokens + config.rollout.max_response_tokens, config.vllm.max_model_tokens
        if config.engine == "vllm" and room is not None and needed > room:
            raise ConfigError(
                "vllm.max_model_tokens",
                room,
                f"at least {needed}: task.max_prompt_tokens and rollout.max_response_tokens together",
            )

    def needs(self, config: RunConfig) -> tuple[Need, ...]:
        """Of the processes that judge answers."""
        what = f"{self.grader_workers} processes that judge answers"
        return (Need(what, self.grader_workers * WORKER_BYTES, ("task.grader_workers",)),)

    def shape(self) -> ModelShape:
        """Without a download: of a folder, or of a name that is known here."""
        return ModelShape(model_shape(self.model), self.max_prompt_tokens)

    def _check_room(self, config: RunConfig, positions: int | None) -> None:
        cap = config.rollout.max_response_tokens
        if positions is not None and self.max_prompt_tokens + cap > positions:
            raise ConfigError(
                "rollout.max_response_tokens",
                cap,
                f"at most {positions - self.max_prompt_tokens}: the model's {positions} positions less "
                f"task.max_prompt_tokens ({self.max_prompt_tokens})",
            )


@dataclass(frozen=True)
class WordProblemTask(PretrainedTask):
    """One-step word problems, endless; held-out ones share no pair of numbers with training."""

    made: WordProblems = field(default_factory=WordProblems)
    """The problems."""

    def problems(self, config: RunConfig, encode: Encoder, ranks: Ranks) -> tuple[Prompts, Prompts, list[str]]:
        """Made one at a time, whenever asked."""

        def train(index: int) -> Prompt:
            return encode([self.made.problem("train", index, config.seed)], SLOT, "error")[0]

        def held_out(index: int) -> Prompt:  # the same for every seed, so that runs compare on equal terms
            return encode([self.made.problem("held_out", index, 0)], SLOT, "error")[0]

        return train, held_out, []


@dataclass(frozen=True)
class MathDataTask(PretrainedTask):
    """Mathematics from files or the hub: DAPO-Math-17k and AIME 2024 unless told otherwise."""

    train: DataSource = field(default_factory=dapo_math_17k)
    """Training problems."""
    held_out: DataSource = field(default_factory=lambda: aime_2024("data/aime-2024.parquet"))
    """Evaluation problems; ``evaluation.problems`` may ask for no more than there are."""
    on_overlap: OnBadRow = "error"
    """A training problem that is also an evaluation problem."""
    on_overlong: OnBadRow = "drop"
    """A training prompt longer than ``max_prompt_tokens``; in the evaluation that is always an error."""

    def idle(self, config: RunConfig) -> Mapping[str, str]:
        """What only a data set of the hub, or only a .json file, has."""
        found: dict[str, str] = {}
        for name, source in (("train", self.train), ("held_out", self.held_out)):
            if source.path is not None:
                found |= {
                    f"task.{name}.{part}": "the problems come from a file" for part in ("subset", "revision", "split")
                }
            if source.path is None or not source.path.endswith(".json"):
                found[f"task.{name}.rows_key"] = "the problems come from no .json file"
        return found

    def problems(self, config: RunConfig, encode: Encoder, ranks: Ranks) -> tuple[Prompts, Prompts, list[str]]:
        """Read, report, check against each other, encode; all before a weight is loaded."""
        import sys

        with renamed(_paths("task.train")):
            train = load_problems(self.train)
        with renamed(_paths("task.held_out")):
            held_out = load_problems(self.held_out)
        with renamed({"on_overlap": "task.on_overlap"}):
            overlap = check_overlap(train.problems, held_out.problems, self.on_overlap)
        for part in (train, held_out, overlap) if ranks.main else ():
            print(part, file=sys.stderr)
        with renamed({name: f"task.{name}" for name in ("max_prompt_tokens", "on_overlong")}):
            judged = encode(held_out.problems, self.held_out.template, "error")
            asked = encode(overlap.train, self.train.template, self.on_overlong)
        if config.evaluation.problems > len(judged):
            raise ConfigError(
                "evaluation.problems", config.evaluation.problems, f"at most {len(judged)}, all there are"
            )
        stream = PromptStream(asked, config.seed)
        truths = dict.fromkeys(problem.answer for problem in [*overlap.train, *held_out.problems])
        return stream, judged.__getitem__, list(truths)


def _paths(source: str) -> dict[str, str]:
    """What ``tppo.data`` calls the fields of a source, and where they are in this configuration."""
    return {f"data.{part.name}": f"{source}.{part.name}" for part in dataclasses.fields(DataSource)}
