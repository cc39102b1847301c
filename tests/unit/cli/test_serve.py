"""`crumb serve`: names of models, sizes, and what it refuses before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_server import NOVELLA, chat_model

from crumb.cli.generation_options import EngineOptions
from crumb.cli.main import main
from crumb.cli.serve import LIMIT_DEFAULTS, LimitOptions, Planner, aliases, describe, size_bytes
from crumb.errors import ModelNotFound, UsageError
from crumb.server.naming import model_name, models_in, named_models

Capsys = pytest.CaptureFixture[str]


def test_models_have_the_names_they_are_given_or_their_own(tmp_path: Path) -> None:
    file = tmp_path / "small.Q4_1.gguf"
    file.touch()
    named = named_models([str(file), "org/name"], ["a=org/other"])
    assert named == {"small.Q4_1": str(file), "org/name": "org/name", "a": "org/other"}
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert model_name(str(odd)) == "a=b"
    assert named_models([str(odd)], []) == {"a=b": str(odd)}
    with pytest.raises(UsageError, match="two models"):
        named_models(["a=x", "a=y"], [])


def test_a_directory_of_models_is_its_files_and_directories(tmp_path: Path) -> None:
    chat_model(tmp_path / "novella-chat")
    (tmp_path / "b.gguf").touch()
    (tmp_path / "notes").mkdir()
    assert list(models_in(tmp_path)) == ["b", "novella-chat"]
    with pytest.raises(ModelNotFound):
        models_in(tmp_path / "notes")


def test_of_a_directory_what_cannot_be_opened_is_told_and_left_out(
    tmp_path: Path, capsys: Capsys
) -> None:
    chat_model(tmp_path / "novella-chat")
    (tmp_path / "b.gguf").write_bytes(b"torn")
    planner = Planner(EngineOptions(context=64), LIMIT_DEFAULTS)
    (served,) = planner.open_all({}, models_in(tmp_path))
    assert served.name == "novella-chat"
    assert "b is left out" in capsys.readouterr().err
    assert "context 64" in describe(served)


@pytest.mark.parametrize(
    ("word", "size"),
    [("1024", 1024), ("8GiB", 8 << 30), ("1.5 MB", 1_500_000), ("2k", 2048), (None, None)],
)
def test_a_size_is_a_number_and_a_unit(word: str | None, size: int | None) -> None:
    assert size_bytes(word, "--memory") == size


@pytest.mark.parametrize("word", ["", "GiB", "-1", "nan", "inf", "1e999", "many", "3 apples"])
def test_what_is_no_size_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        size_bytes(word, "--memory")


def test_the_cache_has_as_many_sequences_as_its_memory_holds() -> None:
    one = Planner(EngineOptions(context=128), LimitOptions(cache_memory="1B")).open(
        "a", "novella-7m"
    )
    assert one.settings.sequences == 1
    size = one.plan.cache_bytes
    limits = LimitOptions(cache_memory=str(5 * size + 1))
    five = Planner(EngineOptions(context=128), limits).open("a", "novella-7m")
    assert five.settings.sequences == 5
    assert five.plan.cache_bytes == 5 * size


def test_an_alias_is_a_name_for_a_model() -> None:
    assert aliases(("a=b",)) == {"a": "b"}
    with pytest.raises(UsageError):
        aliases(("a",))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--api-key", " k"], "API key"),
        (["a=nowhere"], "nowhere"),
        (["--alias", "x"], "alias"),
        (["--memory", "much"], "--memory"),
        (["--cache-disk", "much"], "--cache-disk"),
        (["--cache-dir", str(NOVELLA / "config.json")], "cache cannot be used"),
        (["--body-bytes", "0"], "body_bytes"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], said: str, capsys: Capsys) -> None:
    assert main(["serve", str(NOVELLA), "--port", "0", *arguments]) in (2, 4)
    assert said in capsys.readouterr().err


def test_every_flag_has_a_variable(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUMB_HOST", "0.0.0.0")
    assert main(["serve", str(NOVELLA), "--port", "0"]) == 2
    assert "0.0.0.0" in capsys.readouterr().err
