"""Tasks are measured by the model's own scores; what cannot be measured is one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import crumb
from crumb.cli.main import main
from crumb.embedded import MODELS
from crumb.errors import UsageError
from crumb.evaluation.harness_model import HarnessModel
from crumb.evaluation.tasks import TaskFigure, figures_of
from crumb.kernels.engine import PAGE_TOKENS
from crumb.requests.tasks_request import make_tasks_request
from crumb.run.language_model import LanguageModel

NOVELLA = str(MODELS["novella-7m"])
CONTEXT, ANSWERS = "The old man looked at the", (" sea", " moon and the stars", " a")


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    with crumb.load(NOVELLA, context_tokens=64, sequences=4) as loaded:
        yield loaded


def asked(model: LanguageModel, context: str, answer: str) -> tuple[None, list[int], list[int]]:
    """As the harness asks of an answer."""
    before, whole = (model.tokenizer.encode(text) for text in (context, context + answer))
    return None, before, whole[len(before) :]


def test_answers_have_the_scores_that_the_model_gives_them(model: LanguageModel) -> None:
    told: list[int] = []
    harness = HarnessModel(model, told.append)
    requests = [asked(model, CONTEXT, answer) for answer in ANSWERS]
    figures = harness._loglikelihood_tokens(requests)
    for (logprob, is_greedy), answer, (_, _, own) in zip(figures, ANSWERS, requests, strict=True):
        score = model.score(CONTEXT + answer)
        assert logprob == sum(float(each.logprob or 0) for each in score.tokens[-len(own) :])
        said = model.generate(CONTEXT, max_tokens=len(own)).tokens
        assert is_greedy == (list(said) == own)
    assert sum(told) == len(ANSWERS)
    greedy = model.generate(CONTEXT, max_tokens=4).tokens
    before = model.tokenizer.encode(CONTEXT)
    assert harness._loglikelihood_tokens([(None, before, list(greedy))])[0][1]


def test_a_context_is_read_once_for_all_its_answers(model: LanguageModel) -> None:
    rows: list[int] = []
    run = model.engine.run

    def counted(parts: Any) -> Any:
        rows.append(sum(len(part.tokens) for part in parts))
        return run(parts)

    context = "The harbour lay quiet under the stars, and nobody came down to the boats. " * 2
    requests = [asked(model, context, answer) for answer in ANSWERS]
    before, own = len(requests[0][1]), sum(len(each[2]) for each in requests)
    model.engine.run = counted  # type: ignore[method-assign]
    try:
        figures = HarnessModel(model, lambda more: None)._loglikelihood_tokens(requests)
    finally:
        del model.engine.run
    assert sum(rows) < before + own + len(ANSWERS) * PAGE_TOKENS
    alone = [HarnessModel(model, print)._loglikelihood_tokens([each])[0] for each in requests]
    assert figures == alone


def test_a_context_that_is_too_long_loses_its_beginning(model: LanguageModel) -> None:
    harness = HarnessModel(model, lambda more: None)
    _, before, own = asked(model, CONTEXT, ANSWERS[1])
    room = model.engine.context_tokens - len(own)
    long = before * 9
    (cut,), (short,) = (
        harness._loglikelihood_tokens([(None, context, own)]) for context in (long, long[-room:])
    )
    assert cut == short


def test_figures_are_metrics_with_their_errors() -> None:
    results: dict[str, Any] = {
        "results": {
            "t": {
                "alias": "t",
                "acc,none": 0.25,
                "acc_stderr,none": 0.1,
                "em,strict": 1,
                "em_stderr,strict": "N/A",
            }
        },
        "n-shot": {"t": 2},
        "versions": {"t": 1.0},
        "n-samples": {"t": {"original": 9, "effective": 4}},
    }
    assert list(figures_of(results)) == [
        TaskFigure("t", "acc", "none", 0.25, 0.1, 4, 2, "1.0"),
        TaskFigure("t", "em", "strict", 1.0, None, 4, 2, "1.0"),
    ]


def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", NOVELLA, "--tasks", "arc_easy"]) == 2
    assert "crumb-llm[tasks]" in capsys.readouterr().err


def test_tasks_beside_a_reference_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", NOVELLA, "--tasks", "a", "--reference", "b"]) == 2
    assert "--tasks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "options"),
    [("", {}), ("a,,b", {}), ("a", {"limit": 0}), ("a", {"examples": -1}), ("a", {"shots": 1})],
)
def test_what_cannot_be_asked_is_refused(tasks: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make_tasks_request("m", tasks, **options)
    assert make_tasks_request("m", "a,b").tasks == ("a", "b")


def test_a_model_without_an_end_cannot_stand_in_for_a_beginning() -> None:
    tokenizer = SimpleNamespace(end_tokens=frozenset(), begin_token=None)
    engine = SimpleNamespace(context_tokens=8)
    harness = HarnessModel(SimpleNamespace(tokenizer=tokenizer, engine=engine), print)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="ends a text"):
        _ = harness.prefix_token_id
