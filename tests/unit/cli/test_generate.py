"""`crumb generate`: streaming, prompts from everywhere, dry runs, refusals and Ctrl-C.

In: the embedded model. Out: text on stdout, memory and speeds on stderr.
"""

from __future__ import annotations

import io
import json
import signal
import threading
from dataclasses import fields
from pathlib import Path

import pytest
from command_line import crumb, run_process, start

import crumb as package
from crumb.machine.processors import processors
from crumb.requests.generate_request import GenerateRequest, Sampling
from crumb.run.generation import FinishReason
from crumb.run.language_model import LanguageModel

Capsys = pytest.CaptureFixture[str]
MODEL = "novella-7m"
PROMPT = "The old man"
QUICK = ("--max-tokens", 8)


@pytest.fixture(scope="module")
def expected() -> str:
    """What Python's own generation gives."""
    with package.load(MODEL) as model:
        return model.generate(PROMPT, max_tokens=8).text


class Typed(io.StringIO):
    """A stdin that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_text_goes_to_stdout_and_the_figures_to_stderr(capsys: Capsys, expected: str) -> None:
    finished = crumb(capsys, "generate", MODEL, PROMPT, *QUICK)
    assert finished.code == 0
    assert finished.out == expected.removesuffix("\n") + "\n"
    needs, speeds = finished.err.splitlines()
    assert needs.startswith("needs ")
    assert "weights 14.69 MB" in needs
    assert "generated 8 tokens" in speeds
    assert "peak memory" in speeds


def test_the_parts_of_the_planned_memory_add_up(capsys: Capsys) -> None:
    record = json.loads(crumb(capsys, "generate", MODEL, "--dry-run", "--json").out)
    parts = [name for name in record if name.endswith("_bytes")]
    whole = {"total_bytes", "available_bytes"}
    assert sum(record[name] for name in set(parts) - whole) == record["total_bytes"]
    with package.load(MODEL) as model:
        assert model.memory.total_bytes == record["total_bytes"] - record["process_bytes"]


@pytest.mark.parametrize("words", [["-"], []], ids=["dash", "none"])
def test_the_prompt_may_come_from_a_pipe(
    words: list[str], capsys: Capsys, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    finished = crumb(capsys, "generate", MODEL, *words, *QUICK)
    assert finished.out.rstrip("\n") == expected.rstrip("\n")


def test_the_prompt_may_come_from_a_file_and_be_echoed(
    tmp_path: Path, capsys: Capsys, expected: str
) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT)
    line = ["generate", MODEL, "--file", tmp_path / "prompt.txt", "--echo", *QUICK]
    assert crumb(capsys, *line).out.rstrip("\n") == (PROMPT + expected).rstrip("\n")


def test_no_prompt_at_a_terminal_is_refused(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Typed())
    finished = crumb(capsys, "generate", MODEL)
    assert finished.code == 2
    assert "there is no prompt" in finished.err


def test_every_option_reaches_the_request(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a value of its own; the whole request is compared."""
    asked: list[GenerateRequest] = []

    def refuse(model: LanguageModel, requests: list[GenerateRequest], *_: object) -> None:
        del model
        asked.extend(requests)
        raise KeyboardInterrupt

    monkeypatch.setattr(LanguageModel, "run", refuse)
    numbers = {"temperature": 0.5, "top_p": 0.6, "min_p": 0.1, "repetition_penalty": 1.5}
    numbers |= {"frequency_penalty": 0.25, "presence_penalty": -0.5, "top_k": 7, "seed": 9}
    line = [f"--{name.replace('_', '-')}={value}" for name, value in numbers.items()]
    line += ["--stop", "a", "--stop", "b", "--logit-bias", "5=-1.5", "--logit-bias", "6=2"]
    line += ["--max-tokens", "3", "--ignore-end", "--logprobs", "2", "--prompt-logprobs", "--json"]
    assert crumb(capsys, "generate", MODEL, PROMPT, *line).code == 130
    sampling = Sampling(**numbers, logit_bias={5: -1.5, 6: 2.0})  # type: ignore[arg-type]
    assert asked == [GenerateRequest(PROMPT, 3, sampling, ("a", "b"), 2, True, True)]
    assert {field.name for field in fields(Sampling)} - {"penalty_window_tokens"} == {
        *numbers,
        "logit_bias",
    }


def test_a_stop_string_ends_the_text_and_is_not_shown(capsys: Capsys, expected: str) -> None:
    stop = expected.split()[1]
    record = json.loads(crumb(capsys, "generate", MODEL, PROMPT, "--json", "--stop", stop).out)
    assert record["stop_string"] == stop
    assert stop not in record["text"]


def test_logprobs_come_with_json_and_are_refused_without(capsys: Capsys) -> None:
    line = ["generate", MODEL, PROMPT, *QUICK, "--logprobs", 2, "--prompt-logprobs"]
    assert crumb(capsys, *line).code == 2
    record = json.loads(crumb(capsys, *line, "--json").out)
    assert [len(token["top"]) for token in record["logprobs"]] == [2] * 8
    assert len(record["prompt_logprobs"]) == record["prompt_tokens"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--logit-bias", "a=1"], "--logit-bias"),
        (["--logit-bias", "5"], "--logit-bias"),
        (["--logit-bias", "5=much"], "--logit-bias"),
        (["--temperature", "-1"], "temperature"),
        (["--max-tokens", "-1"], "max_tokens"),
        (["--max-tokens", "9" * 19], "at most 18 digits"),
        (["--context", "0"], "context_tokens"),
        (["--context", "9999"], "positions"),
        (["--threads", "0"], "threads"),
        (["--file", "some.txt"], "two prompts"),
    ],
)
def test_a_setting_that_cannot_be_is_exit_2(options: list[str], named: str, capsys: Capsys) -> None:
    finished = crumb(capsys, "generate", MODEL, PROMPT, *options)
    assert finished.code == 2
    assert named in finished.err.splitlines()[-1]


def test_what_a_dry_run_says_is_what_a_run_takes() -> None:
    """Within 3 % or 8 MiB, whichever is more: how the heap is cut differs from run to run."""
    line = ("generate", MODEL, PROMPT, "--max-tokens", 4, "--context", 128, "--json")
    planned = json.loads(run_process(*line, "--dry-run").out)
    peak = json.loads(run_process(*line).out)["peak_memory_bytes"]
    assert planned["process_bytes"] > planned["weights_bytes"]
    assert abs(planned["total_bytes"] - peak) < max(0.03 * peak, 8 << 20)


def test_more_threads_than_processors_run_and_are_spoken_of(capsys: Capsys) -> None:
    many = processors() + 1
    finished = crumb(capsys, "generate", MODEL, PROMPT, "--max-tokens", 1, "--threads", many)
    assert finished.code == 0
    told = f"{many} threads share {many - 1} processors: --threads {many - 1} will be faster"
    assert told in finished.err.splitlines()
    quiet = crumb(capsys, "generate", MODEL, PROMPT, "--max-tokens", 1)
    assert "threads" not in quiet.err


def test_threads_without_end_are_refused_by_name(capsys: Capsys) -> None:
    finished = crumb(capsys, "generate", MODEL, PROMPT, "--threads", 5000)
    assert finished.code == 2
    assert "threads: an engine setting is out of range" in finished.err


def test_a_dry_run_of_what_does_not_fit_is_exit_3(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crumb.run.memory_plan.available_bytes", lambda: 1000)
    finished = crumb(capsys, "generate", MODEL, "--dry-run")
    assert finished.code == 3
    assert "does not" in finished.err or "do not fit" in finished.err


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_keeps_what_was_printed_and_is_exit_130(as_json: bool) -> None:
    options = ["--json"] if as_json else []
    process = start("generate", MODEL, PROMPT, "--ignore-end", *options)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("needs ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "crumb: interrupted"
    assert "peak memory" in err
    if as_json:
        assert json.loads(out)["finish_reason"] == "cancelled"


def test_a_prompt_that_is_still_being_read_can_be_cancelled() -> None:
    """Before the first token: the prompt is read in several steps, and none follows."""
    cancelled = threading.Event()
    cancelled.set()
    request = GenerateRequest(tuple(range(1, 1000)), max_tokens=4, prompt_logprobs=True, logprobs=1)
    with package.load(MODEL) as model:
        (generation,) = model.run([request], cancelled=cancelled)
        assert generation.finish_reason is FinishReason.CANCELLED
        assert generation.tokens == ()
        assert generation.prompt_logprobs is None
        assert model.generate(PROMPT, max_tokens=2).completion_tokens == 2
