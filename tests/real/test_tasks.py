"""lm-evaluation-harness in this process and over HTTP: the scores are those of model.score.

In: novella, on loopback too, and a small task of choices, texts and answers in files. Out: the same
figures both ways. Skipped where lm-eval is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import NOVELLA, Live, live, served, until

import crumb
from crumb.cli.main import main

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]

QUESTIONS = [
    {"begin": "Once upon a time", "choices": ["there was a king", "a of the", "seven"], "right": 0},
    {"begin": "The old man looked at the", "choices": ["of", "sea", "and"], "right": 1},
    {"begin": "She opened the door and", "choices": ["the", "looked out", "table"], "right": 1},
    {"begin": "In the morning the", "choices": ["sun", "went", "two of them were"], "right": 2},
]
CHOICES = """task: crumb_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{begin}}}}"
doc_to_target: "{{{{right}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """task: crumb_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{begin}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
ANSWERS = """task: crumb_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{begin}}}}"
doc_to_target: "{{{{said}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
TASKS = {"choices": CHOICES, "texts": ROLLING, "answers": ANSWERS}
EXACT = 1e-9
"""The harness adds the same log-probabilities in another order."""


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with crumb.load(NOVELLA, context_tokens=256, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Iterator[dict[str, str]]:
    """Tasks by kind; what the third must say is what the model says, but for one question."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        said = [
            model.generate(each["begin"], max_tokens=12, stop=".").text for each in QUESTIONS[:3]
        ]
        lines = [
            json.dumps(each | {"said": text})
            for each, text in zip(QUESTIONS, [*said, "another"], strict=True)
        ]
        (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
        for name, text in TASKS.items():
            (folder / f"{name}.yaml").write_text(text.format(file=folder / "questions.jsonl"))
        yield {name: str(folder / f"{name}.yaml") for name in TASKS}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(lambda: [served("novella", NOVELLA)]) as running:
        until(lambda: running.http.get("/health").status_code == 200)
        yield running


def in_process(files: dict[str, str], *names: str) -> dict[str, float]:
    """Figures of `crumb eval --tasks`."""
    tasks = [files[name] for name in names]
    made = crumb.evaluate_tasks(NOVELLA, tasks, context_tokens=256, activations="int8")
    assert all(each.questions == len(QUESTIONS) for each in made.figures)
    return {each.metric: each.value for each in made.figures}


def over_http(server: Live, files: dict[str, str], name: str) -> dict[str, float]:
    """Figures of the harness's own client."""
    lm_eval = pytest.importorskip("lm_eval")
    tasks = pytest.importorskip("lm_eval.tasks")
    folder = str(Path(files[name]).parent)
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "novella",
            "base_url": f"{server.url}/v1/completions",
            "tokenizer_backend": "remote",
            "max_length": 256,
            "num_concurrent": 3,
            "custom_prefix_token_id": 0,  # novella's own, which the harness takes for none
        },
        tasks=[f"crumb_{name}"],
        task_manager=tasks.TaskManager(include_path=folder, include_defaults=False),
        log_samples=False,
    )
    figures = results["results"][f"crumb_{name}"]
    return {
        key.partition(",")[0]: value
        for key, value in figures.items()
        if "," in key and "stderr" not in key
    }


def test_choices_are_those_that_the_models_own_scores_choose(
    model: Any, server: Live, files: dict[str, str]
) -> None:
    right = right_normal = 0
    for each in QUESTIONS:
        logprobs = []
        for choice in each["choices"]:
            begin = len(model.tokenizer.encode(each["begin"]))
            tokens = model.score(f"{each['begin']} {choice}").tokens[begin:]
            logprobs.append(sum(token.logprob for token in tokens))
        normal = [p / len(c) for p, c in zip(logprobs, each["choices"], strict=True)]
        right += logprobs.index(max(logprobs)) == each["right"]
        right_normal += normal.index(max(normal)) == each["right"]
    expected = {"acc": right / len(QUESTIONS), "acc_norm": right_normal / len(QUESTIONS)}
    assert in_process(files, "choices") == expected
    assert over_http(server, files, "choices") == expected


def test_texts_have_the_perplexity_of_the_models_own_scores(
    model: Any, server: Live, files: dict[str, str]
) -> None:
    ends = min(model.tokenizer.end_tokens)
    begin = ends if model.tokenizer.begin_token is None else model.tokenizer.begin_token
    total = sum(
        model.score([begin, *model.tokenizer.encode(each["begin"], special=False)]).logprob
        for each in QUESTIONS
    )
    words = sum(len(each["begin"].split()) for each in QUESTIONS)
    expected = 2.718281828459045 ** (-total / words)
    ours = in_process(files, "texts")["word_perplexity"]
    assert ours == pytest.approx(expected, rel=EXACT)
    assert over_http(server, files, "texts")["word_perplexity"] == pytest.approx(ours, rel=EXACT)


def test_answers_are_those_that_the_model_generates(server: Live, files: dict[str, str]) -> None:
    assert in_process(files, "answers") == {"exact_match": 0.75}
    assert over_http(server, files, "answers") == {"exact_match": 0.75}


def test_several_tasks_are_one_table(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ",".join(files.values())
    assert main(["eval", str(NOVELLA), "--tasks", words, "--context", "256", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert {each["task"] for each in figures} == {f"crumb_{name}" for name in TASKS}
    assert main(["eval", str(NOVELLA), "--tasks", files["choices"], "--limit", "2"]) == 0
    assert "acc_norm" in capsys.readouterr().out


def test_tasks_that_are_not_there_are_one_line(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(files["choices"]).with_name("group.yaml")
    other.write_text("task: [crumb_choices]\n")
    assert main(["eval", str(NOVELLA), "--tasks", str(other)]) == 2
    assert "no such task" in capsys.readouterr().err
    assert main(["eval", str(NOVELLA), "--tasks", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
