"""The `crumb` command: help, usage errors, exit codes, and what goes to which stream.

In: command lines, run in this process and, where signals and pipes matter, as processes. Out: one
line on stderr for every failure; stdout holds results alone.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from command_line import crumb, eval_line, quantize_line, refusal, run_process, succeed
from cyclopts import App
from tiny_checkpoint import write_checkpoint

import crumb as package
from crumb import errors
from crumb.cli import main as entry
from crumb.cli.commands import COMMANDS
from crumb.cli.generation_options import EngineOptions, TextOptions
from crumb.cli.small_models import SMALL_MODELS

Capsys = pytest.CaptureFixture[str]

VERBS: dict[str, Any] = {
    name: getattr(importlib.import_module(f"crumb.cli.{module}"), function)
    for name, (module, function) in ((row[0], row[1].split(":")) for row in COMMANDS)
}
"""Name of each command -> its function, or an app where a command has commands of its own."""

OPTIONS_IN_THE_SIGNATURE = (
    "quantize",
    "eval",
    "generate",
    "chat",
    "bench",
    "show",
    "formats",
    "kernels",
    "demo",
)


@pytest.mark.parametrize(("name", "purpose"), [(row[0], row[2]) for row in COMMANDS])
def test_help_names_every_command_with_the_first_sentence_of_its_docstring(
    name: str, purpose: str, capsys: Capsys
) -> None:
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", succeed(capsys, "--help")).split())
    assert f" {name} {purpose} " in text
    command = VERBS[name]
    said = command.help if isinstance(command, App) else command.__doc__
    assert " ".join(said.split("\n\n")[0].split()) == purpose


SHARED = {"TextOptions": TextOptions, "EngineOptions": EngineOptions}
"""Types of parameters that stand for the options which several verbs have."""


def parameters_of(verb: Callable[..., None]) -> Iterator[tuple[str, bool]]:
    """Name of each parameter, shared ones spread out, and whether it is an option."""
    for name, parameter in inspect.signature(verb).parameters.items():
        if parameter.annotation in SHARED:
            shared = fields(SHARED[parameter.annotation])
            yield from ((field.name, True) for field in shared)
        else:
            yield name, parameter.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("verb", OPTIONS_IN_THE_SIGNATURE)
def test_help_of_a_verb_names_every_option_and_says_what_it_is_for(
    verb: str, capsys: Capsys
) -> None:
    text = succeed(capsys, verb, "--help")
    for name, is_option in parameters_of(VERBS[verb]):
        option = name.replace("_", "-")
        shown = f"--{option}" if is_option else name.upper()
        line = re.search(rf"^\W+{shown}\b(.*)$", text, re.MULTILINE)
        assert line, shown
        assert len(re.findall(r"[a-z]{2,}", line[1])) >= 2, f"{shown} is not explained"


@pytest.mark.parametrize("verb", OPTIONS_IN_THE_SIGNATURE)
def test_only_true_flags_have_a_negative_form(verb: str, capsys: Capsys) -> None:
    text = succeed(capsys, verb, "--help")
    negative = set(re.findall(r"--(?:no|empty)-[a-z-]+", text))
    true_flags = {"quantize": {"--no-act-order", "--no-pack"}, "generate": {"--no-speculate"}}
    true_flags["chat"] = true_flags["generate"]
    assert negative == true_flags.get(verb, set())


def test_the_version_is_the_packages(capsys: Capsys) -> None:
    assert succeed(capsys, "--version").strip() == package.__version__


def test_crumb_alone_shows_its_help(capsys: Capsys) -> None:
    assert "Usage: crumb" in succeed(capsys)


USAGE: list[tuple[list[str], str]] = [
    (["bake"], "bake"),
    (["quantise", "x", "--bits", "3"], "quantise"),
    (["quantize"], "MODEL"),
    (["quantize", "x", "--bits"], "--bits"),
    (["quantize", "x", "--bits", "3", "--colour", "red"], "--colour"),
    (["quantize", "x", "y", "--bits", "3"], "y"),
    (["quantize", "x", "--bits", "3", "--bits", "4"], "--bits"),
    (["eval"], "MODEL"),
    (["eval", "x", "--window", "1e3"], "--window"),
    (["show", "x", "--json", "--jsn"], "--jsn"),
    (["formats", "extra"], "extra"),
    (["demo", "--keep"], "--keep"),
    (["generate", "x", "y", "--temprature", "1"], "--temperature"),
    (["generate", "x", "--max-tokens", "1.5"], "--max-tokens"),
    (["generate", "x", "y", "--cache", "f8"], "--cache"),
    (["chat"], "MODEL"),
    (["bench", "x", "--format", "xml"], "--format"),
    (["kernels", "extra"], "extra"),
    (["--nonsense"], "--nonsense"),
]


@pytest.mark.parametrize(("line", "named"), USAGE, ids=lambda value: " ".join(value)[:40])
def test_a_command_that_cannot_be_read_is_exit_2_in_one_line(
    line: list[str], named: str, capsys: Capsys
) -> None:
    said = refusal(capsys, 2, *line)
    assert named in said
    assert said.endswith("See `crumb --help`.")


def test_an_unknown_verb_is_refused_with_a_list_that_says_it_goes_on(capsys: Capsys) -> None:
    assert ", ... See `crumb --help`." in refusal(capsys, 2, "nope")


def test_a_mistyped_option_is_suggested_in_a_sentence_with_one_stop(capsys: Capsys) -> None:
    said = refusal(capsys, 2, "quantize", "x", "--bit", "3")
    assert said == "crumb: Unknown option: --bit. Did you mean --bits? See `crumb --help`."


@pytest.mark.parametrize("verb", ["chat", "generate", "quantize", "delta apply"])
def test_without_a_model_a_newcomer_is_told_which_to_try(verb: str, capsys: Capsys) -> None:
    said = refusal(capsys, 2, *verb.split())
    models = [model.name for model in SMALL_MODELS if model.name in said]
    if verb.startswith("delta"):
        assert models == []
        return
    assert models == [model.name for model in SMALL_MODELS if model.chats or verb != "chat"]
    assert f"Try `crumb {verb} {models[0]}`" in said


HELP_GROUPS = {
    "quantize": ["Arguments", "Format", "Budget", "Calibration", "Solver", "Output"],
    "eval": ["Arguments", "Text", "Engine", "Tasks", "Output"],
    "generate": ["Arguments", "Prompt", "Sampling", "Engine", "Output"],
    "chat": ["Arguments", "Prompt", "Sampling", "Engine", "Access"],
    "bench": ["Arguments", "Work", "Engine", "Output"],
}


@pytest.mark.parametrize("verb", HELP_GROUPS)
def test_help_of_a_verb_with_many_options_shows_them_in_groups(verb: str, capsys: Capsys) -> None:
    text = succeed(capsys, verb, "--help")
    assert re.findall(r"^╭─ (\w+) ─", text, re.MULTILINE) == HELP_GROUPS[verb]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.CrumbError("broken"), 1),
        (errors.UsageError("wrong"), 2),
        (errors.GateFailed("failed"), 3),
        (errors.DoesNotFit("full"), 3),
        (errors.ModelNotFound("none"), 4),
        (errors.CheckpointError("cut", where="a\nb", expected="1\n2", found="\t", do="Look"), 1),
        (OSError(28, "No space left on device", "/dev/full"), 1),
        (OSError("odd"), 1),
        (MemoryError("Unable to allocate 7 TiB"), 3),
        (KeyboardInterrupt(), 130),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_failure_is_one_line_and_its_exit_code(
    error: BaseException, code: int, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(entry, "app", fail)
    refusal(capsys, code, "formats")


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback is what a bug report needs."""

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "app", fail)
    with pytest.raises(ZeroDivisionError):
        entry.main(["formats"])


def test_a_reader_who_goes_away_ends_the_command_quietly(tmp_path: Path) -> None:
    """Whether the output is longer than what Python holds back, or short."""
    model = write_checkpoint(tmp_path / "tiny")
    reading, writing = os.pipe()
    os.close(reading)
    program = "from crumb.cli.main import run; run()"
    with os.fdopen(writing, "wb") as gone:
        for line in (["formats"], ["formats", "--json"], ["--help"], eval_line(model)):
            process = subprocess.run(
                [sys.executable, "-c", program, *line],
                stdout=gone,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                env=os.environ | {"PYTHONUNBUFFERED": ""},
            )
            assert process.returncode == 1, line
            assert [said for said in process.stderr.splitlines() if "needs about" not in said] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_one_line() -> None:
    program = "from crumb.cli.main import run; run()"
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [sys.executable, "-c", program, "formats"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": ""},
        )
    assert process.returncode == 1
    (said,) = process.stderr.splitlines()
    assert said == "crumb: the operating system refused: No space left on device"


def test_any_terminal_and_any_path_can_be_written_to(tmp_path: Path) -> None:
    """± and box lines where only ASCII goes, and a directory whose name is no UTF-8."""
    model = write_checkpoint(tmp_path / os.fsdecode(b"caf\xe9"))
    evaluation = run_process(*eval_line(model), PYTHONIOENCODING="ascii")
    shown = run_process("show", model, "--json", PYTHONIOENCODING="ascii")
    for finished in (evaluation, shown):
        assert finished.code == 0, finished.err
        assert finished.err == "" or finished.err.startswith("needs about")
        assert "caf\\udce9" in finished.out
    assert " \\xb1 " in evaluation.out
    assert json.loads(shown.out)["path"] == str(model)


def test_only_an_interrupted_quantization_promises_to_continue(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for verb in ("eval", "quantize"):
        module = importlib.import_module(f"crumb.cli.{verb}")
        worker = "run_evaluate" if verb == "eval" else "run_quantize"
        monkeypatch.setattr(module, worker, interrupt)
    assert refusal(capsys, 130, *eval_line(tmp_path)) == "crumb: interrupted"
    said = refusal(capsys, 130, *quantize_line(tmp_path, tmp_path / "out"))
    assert said == "crumb: interrupted; the same command continues where it stopped"


def test_a_script_of_that_name_is_installed() -> None:
    script = Path(sys.executable).with_name("crumb")
    finished = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == package.__version__


def test_nothing_but_results_reaches_stdout(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress lines, made frequent here, and the announced cost go to stderr."""
    from crumb.cli import output

    monkeypatch.setattr(output, "LINE_SECONDS", 0.0)
    model = write_checkpoint(tmp_path / "tiny")
    finished = crumb(capsys, *quantize_line(model, tmp_path / "out"))
    assert finished.code == 0
    (summary,) = finished.out.splitlines()
    assert summary.startswith("quantized: ")
    announced, *progress = finished.err.splitlines()
    assert announced.startswith("needs about ")
    shares = [int(line.split("%")[0]) for line in progress]
    assert len(shares) > 20
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert all("remain" in line for line in progress)
    finished = crumb(capsys, *eval_line(model))
    assert "perplexity" in finished.out
    assert "windows" in finished.err
