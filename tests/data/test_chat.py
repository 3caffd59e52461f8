"""How a model is asked: templates under limits, with a clock that stands still, or without a template."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from paper_repro.models.shrunken import CHATML, shrunken_folder
from paper_repro.tasks.pretrained import MathDataTask, WordProblemTask
from tests.models.test_folder import small, write_rows
from tppo.config.run import validate
from tppo.config.stored import read_config
from tppo.data import templates
from tppo.data.chat import ChatTokenizer, now
from tppo.data.problems import load_problems
from tppo.data.templates import Template
from tppo.errors import ConfigError, DataError
from tppo.evaluation.model import Asked
from tppo.evaluation.store import moment_of
from tppo.runs.build import build_trainer
from tppo.runs.run import run
from tppo.types import Prompt

DATED = "{{ strftime_now('%d %b %Y %H:%M:%S') }} " + CHATML


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that takes every text."""
    return shrunken_folder("Qwen2.5-0.5B", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def dated(bytewise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a template that writes the time, to the second."""
    folder = tmp_path_factory.mktemp("dated")
    for path in bytewise.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_text(DATED)
    return folder


def text(chat: ChatTokenizer, question: str) -> str:
    return str(chat.tokenizer.decode(chat.encode(question)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for", "TemplateSyntaxError"),
        ("{{ raise_exception('no\nsystem') }}", "TemplateError: no system"),
        ("{% for i in range(10**12) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
        ("{{ 2**(2**30) }}", "takes more than"),
        ("{{ 'x' * 10**10 }}", "needs more than"),
        ("{{ 'a'|center(10**10) }}", "needs more than"),
        ("{{ 'x' * 2000000 }}", "it writes 2000000 characters"),
        ("{% for i in range(2000) %}{{ 'x' * 1000 }}{% endfor %}", "it writes 2000000 characters"),
        ("{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}", "RecursionError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ '\\ud800' }}", "surrogates"),
        ("{{ strftime_now(5) }}", "TypeError"),
        (" \n", "it writes nothing"),
    ],
)
def test_a_template_that_fails_is_refused_on_one_line(source: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates._pool(os.getpid()), "seconds", 1.0)
    expected = r"model\.chat_template = 'turns of system, user': .*a template in x"
    with pytest.raises(ConfigError, match=expected) as caught:
        Template(source, "{}", "2026-01-31", "x").render([("system", "s")], ["1 + 1?"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert Template("{{ 6 * 7 }}", "{}", "2026-01-31", "x").render([], ["a"]) == ["42"]


def test_many_prompts_are_those_of_one_at_a_time() -> None:
    """Also where a reply does not hold all that were asked for, and of a template that draws."""
    template = Template("{{ messages[0].content }}{{ range(1000)|random }}", "{}", "2026-01-31", "x")
    questions = [f"{i} " + "x" * 40_000 for i in range(150)]
    together = template.render([], questions)
    assert together == [template.render([], [question])[0] for question in questions]
    assert len({t[-3:] for t in together}) == 1


def test_a_template_is_rendered_as_transformers_does(bytewise: Path) -> None:
    turns = [{"role": "system", "content": "<b>Zürich"}, {"role": "user", "content": "日本 \u221a2\n?"}]
    chat = ChatTokenizer(bytewise, [("system", "<b>Zürich")])
    own = chat.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text(chat, "日本 \u221a2\n?") == own


def test_the_clock_of_a_template_stands_still(dated: Path, tmp_path: Path) -> None:
    chat = ChatTokenizer(dated, moment="2026-03-01T23:59:59")
    assert text(chat, "1 + 1?").startswith("01 Mar 2026 23:59:59 <|im_start|>")
    chat.save(tmp_path)
    for path in ("config.json", "model.safetensors"):
        (tmp_path / path).write_bytes((dated / path).read_bytes())
    assert ChatTokenizer(tmp_path).moment == "2026-03-01T23:59:59"
    assert ChatTokenizer(tmp_path, moment="2026-04-01").moment == "2026-04-01"
    assert ChatTokenizer(dated).moment <= now()


class NoReward:
    """Judges nothing, at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.counts: dict[str, int] = {}
        self.slowest = 0.0

    def __call__(self, prompt: Prompt, text: str) -> float:
        return float(len(text) % 2)


def test_a_run_keeps_the_date_of_its_start(dated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses are in flight when it stops; it goes on another day, and its evaluation sees its prompts."""
    config = small(WordProblemTask(model=str(dated), max_prompt_tokens=512), steps=1).with_values(
        rollout__max_response_tokens=12, algorithm__window=6, algorithm__warmup_steps=0, checkpoint__every=1
    )
    monkeypatch.setattr("tppo.grading.mathematics.MathReward", NoReward)
    days = iter(["2026-03-01T23:59:59", "2026-03-02T00:00:01", "2026-03-03T00:00:01"])
    monkeypatch.setattr("tppo.runs.build.now", lambda: next(days))
    run(config, tmp_path / "r", progress=False)
    run(config.with_values(steps=2), tmp_path / "r", progress=False, resume="auto", allow_change=["steps"])
    other = config.with_values(steps=2, started="2026-01-01")
    with pytest.raises(ConfigError, match="these fields changed: started"):
        run(other, tmp_path / "r", progress=False, resume="auto", allow_change=["steps"])
    stored = read_config(tmp_path / "r")
    assert stored.started == "2026-03-01T23:59:59"
    assert next(days) == "2026-03-02T00:00:01"
    with pytest.raises(ConfigError, match="started = 'today': expected a date such as"):
        validate(config.with_values(started="today"))


def test_plain_text_is_the_question_alone(bytewise: Path, tmp_path: Path) -> None:
    """In training and evaluation, and for a base model, which has no template."""
    base = tmp_path / "base"
    base.mkdir()
    for path in bytewise.iterdir():
        if path.name != "chat_template.jinja":
            (base / path.name).write_bytes(path.read_bytes())
    train = write_rows(tmp_path / "train.jsonl", [(f"What is {n} + 1?", str(n + 1)) for n in range(9)])
    held_out = write_rows(tmp_path / "test.jsonl", [(f"What is {n} - 1?", str(n - 1)) for n in range(20, 24)])
    task = MathDataTask(model=str(base), max_prompt_tokens=40, train=train, held_out=held_out)
    with pytest.raises(ConfigError, match=r"a chat template in .*; or --task\.no-chat in training, --no-chat in"):
        build_trainer(small(task))
    trainer = build_trainer(small(task.__class__(**{**task.__dict__, "chat": False})))
    chat = ChatTokenizer(base, chat=False)
    asked = {chat.tokenizer.decode(trainer.workload.prompts(i).tokens) for i in range(9)}
    assert asked == {f"What is {n} + 1?" for n in range(9)}
    assert text(chat, "Zürich: 日本 ") == "Zürich: 日本 "
    problems = load_problems(held_out).problems
    prompts = Asked(base, problems, held_out.template, max_new_tokens=4, plain=True).prompts
    assert [chat.tokenizer.decode(prompt.tokens) for prompt in prompts] == [f"What is {n} - 1?" for n in range(20, 24)]
    with pytest.raises(ConfigError, match="a chat template in"):
        Asked(base, problems, held_out.template, max_new_tokens=4)


class Marked:
    """A tokenizer that puts a mark before every text, and an end behind it."""

    def __call__(self, words: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in words]
        return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}


def test_plain_text_begins_as_the_tokenizer_wants_and_does_not_end(bytewise: Path) -> None:
    chat = ChatTokenizer(bytewise, chat=False)
    chat.tokenizer = Marked()
    assert chat.encode("ab") == [1, 97, 98]


@pytest.mark.parametrize("field", ["system", "example_question"])
def test_plain_text_has_no_turns(field: str) -> None:
    task = WordProblemTask(chat=False, **{field: "What?"}, example_answer="x" if field != "system" else "")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"task\.{field} = 'What\?': expected no such turn with task\.chat = False"):
        validate(small(task))


def test_half_of_a_surrogate_pair_is_no_question(bytewise: Path) -> None:
    with pytest.raises(DataError, match="expected text in Unicode"):
        ChatTokenizer(bytewise, chat=False).encode("\ud800")
    with pytest.raises(ConfigError, match="surrogates"):
        ChatTokenizer(bytewise).encode("\ud800")


def test_an_evaluation_keeps_the_date_of_its_start(tmp_path: Path) -> None:
    assert moment_of(tmp_path) == ""
    (tmp_path / "eval.json").write_text('{"started": "2026-03-01"}')
    assert moment_of(tmp_path) == "2026-03-01"
    (tmp_path / "eval.json").write_text('{"started": [1]}')
    with pytest.raises(ConfigError, match=r"eval\.json = \[1\]: expected a date"):
        moment_of(tmp_path)
