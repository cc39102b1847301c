"""A model's name becomes a directory: local paths, hub names and revisions, and what goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from crumb.checkpoints.huggingface.hub import locate
from crumb.errors import CrumbError, DoesNotFit, ModelNotFound

MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}


def test_a_directory_is_itself_and_wins_over_a_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_cache: Callable[..., Path]
) -> None:
    hub_cache("org/name", MODEL)
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("org/name") == Path("org/name")
    assert locate(str(tmp_path)) == tmp_path


def test_a_hub_name_is_its_snapshot_in_the_cache(hub_cache: Callable[..., Path]) -> None:
    snapshot = hub_cache("org/name", MODEL)
    assert locate("org/name") == snapshot
    assert (locate("org/name") / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/7"])
def test_a_revision_is_looked_up_by_its_own_name(
    hub_cache: Callable[..., Path], revision: str
) -> None:
    snapshot = hub_cache("org/name", MODEL, revision=revision)
    assert locate(f"org/name@{revision}") == snapshot
    with pytest.raises(ModelNotFound, match="org/name: the hub could not be reached"):
        locate("org/name")


def test_the_environment_of_the_hub_is_honoured(
    hub_cache: Callable[..., Path], tmp_path: Path
) -> None:
    snapshot = hub_cache("org/name", MODEL)
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    program = "from crumb.checkpoints.huggingface.hub import locate; print(locate('org/name'))"
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(snapshot)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nothing",
        "a/b/c",
        "a/b/c/d.gguf",
        "org/na me",
        "org/name@",
        "x" * 5000,
        "a\0b",
        "~nobody-here/x",
    ],
)
@pytest.mark.usefixtures("hub_cache")
def test_a_name_that_is_neither_path_nor_repository_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        locate(name)
    assert caught.value.exit_code == 4
    assert len(str(caught.value)) < 600


GGUF = {"a-Q4_K_M.gguf": b"GGUF", "a-Q4_K_S.gguf": b"GGUF", "a.IQ4_XS.gguf": b"GGUF"}


@pytest.mark.parametrize(
    "name",
    [
        "hf.co/org/name",
        "huggingface.co/org/name",
        "hf://org/name",
        "https://huggingface.co/org/name",
        "https://huggingface.co/org/name/",
        "https://www.huggingface.co/org/name/tree/main",
        "https://hf.co/org/name?library=transformers#usage",
        "https://huggingface.co/org/name/blob/main/model.safetensors",
        "https://huggingface.co/org/name/resolve/main/config.json?download=true",
        "hf.co/org/name:latest",
    ],
)
def test_addresses_of_a_repository_are_its_name(hub_cache: Callable[..., Path], name: str) -> None:
    snapshot = hub_cache("org/name", MODEL)
    assert locate(name) == snapshot


def test_the_revision_of_a_page_is_followed(hub_cache: Callable[..., Path]) -> None:
    snapshot = hub_cache("org/name", MODEL, revision="v1")
    assert locate("https://huggingface.co/org/name/tree/v1") == snapshot


@pytest.mark.parametrize("name", ["hf.co/org/name:{}", "org/name:{}", "https://hf.co/org/name:{}"])
@pytest.mark.parametrize(
    ("type", "file"),
    [
        ("Q4_K_M", "a-Q4_K_M.gguf"),
        ("q4_k_s", "a-Q4_K_S.gguf"),
        ("IQ4_XS", "a.IQ4_XS.gguf"),
        ("Q8_0", "Q8_0/a-Q8_0-00001-of-00002.gguf"),
    ],
)
def test_a_type_is_the_file_of_that_type(
    hub_cache: Callable[..., Path], name: str, type: str, file: str
) -> None:
    parts = [f"Q8_0/a-Q8_0-{part:05}-of-00002.gguf" for part in (1, 2)]
    others = {"mmproj-Q8_0.gguf": b"GGUF", "README.md": b""}
    snapshot = hub_cache("org/name", GGUF | dict.fromkeys(parts, b"GGUF") | others)
    assert locate(name.format(type)) == snapshot / file


@pytest.mark.parametrize("type", ["Q4_K", "Q5_K_M", "4"])
def test_a_type_that_is_not_there_is_refused_with_those_that_are(
    hub_cache: Callable[..., Path], type: str
) -> None:
    hub_cache("org/name", GGUF)
    with pytest.raises(ModelNotFound, match=rf"no GGUF file of type {type}.*a-Q4_K_M\.gguf"):
        locate(f"org/name:{type}")


def test_several_files_of_a_type_are_named(hub_cache: Callable[..., Path]) -> None:
    hub_cache("org/name", {"a-Q8_0.gguf": b"GGUF", "b-Q8_0.gguf": b"GGUF"})
    with pytest.raises(ModelNotFound, match=r"several.*a-Q8_0\.gguf, b-Q8_0\.gguf.*name/FILE"):
        locate("org/name:Q8_0")


def test_a_repository_of_one_gguf_file_is_that_file(hub_cache: Callable[..., Path]) -> None:
    snapshot = hub_cache("org/name", {"a.gguf": b"GGUF", "config.json": b"{}"})
    assert locate("hf.co/org/name") == snapshot / "a.gguf"


def test_a_repository_of_several_gguf_files_asks_which(hub_cache: Callable[..., Path]) -> None:
    hub_cache("org/name", GGUF)
    with pytest.raises(ModelNotFound, match=r"several GGUF files.*Name a type.*org/name:Q4_K_M"):
        locate("org/name")


def test_a_repository_of_pickles_is_refused_by_name(hub_cache: Callable[..., Path]) -> None:
    hub_cache("org/name", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(CrumbError, match=r"pickle weights alone.*pytorch_model\.bin"):
        locate("org/name")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://example.com/model.gguf", "from the Hugging Face hub alone.*Download"),
        ("https://huggingface.co/datasets/org/name", "leads to no model"),
        ("llama3.2:1b", "Ollama's own names"),
    ],
)
def test_other_addresses_are_refused_by_what_they_are(name: str, said: str) -> None:
    with pytest.raises(ModelNotFound, match=said):
        locate(name)


def test_a_file_of_a_repository_is_the_file_in_its_snapshot(
    hub_cache: Callable[..., Path],
) -> None:
    snapshot = hub_cache("org/name", {"a.Q4_K.gguf": b"GGUF", "b.gguf": b"GGUF"}, revision="v1")
    assert locate("org/name/a.Q4_K.gguf@v1") == snapshot / "a.Q4_K.gguf"
    with pytest.raises(ModelNotFound, match=r"no such file|could not be reached"):
        locate("org/name/c.gguf@v1")


@pytest.mark.parametrize(
    ("file", "kept"),
    [
        ("a.gguf", ["a.gguf"]),
        ("a-00001-of-00002.gguf", ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]),
    ],
)
def test_a_file_of_a_repository_is_fetched_with_its_other_parts_alone(
    file: str, kept: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def remember(repository: str, **settings: Any) -> str:
        asked.update(settings, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", remember)
    (tmp_path / file).write_bytes(b"GGUF")
    assert locate(f"org/name/{file}") == tmp_path / file
    assert asked["repository"] == "org/name"
    names = [
        *("a.gguf", "b.gguf", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf"),
        *("a-00001-of-00003.gguf", "folder/a.gguf", "config.json", "model.safetensors"),
    ]
    found = huggingface_hub.utils.filter_repo_objects(
        names, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(found) == kept


def test_a_model_outside_the_cache_says_how_to_reach_it(hub_cache: Callable[..., Path]) -> None:
    del hub_cache  # there is a cache, but nothing in it
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE"):
        locate("org/name")


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """An error of the hub's server, whatever HTTP client the installed library uses."""
    response: Any = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind("the server's words", response=response)


FAILURES: list[tuple[Exception, type[CrumbError], str]] = [
    (http_error(GatedRepoError, 403), ModelNotFound, "asks for permission"),
    (http_error(HfHubHTTPError, 403), ModelNotFound, "asks for permission"),
    (http_error(RepositoryNotFoundError, 401), ModelNotFound, "no such repository"),
    (http_error(RevisionNotFoundError, 404), ModelNotFound, "no such revision"),
    (http_error(HfHubHTTPError, 500), ModelNotFound, "could not be reached"),
    (ConnectionError("refused"), ModelNotFound, "could not be reached"),
    (RuntimeError("a proxy error of some client"), ModelNotFound, "could not be reached"),
    (OSError(errno.ENOSPC, "No space left on device"), DoesNotFit, "the disk is full"),
]


@pytest.mark.parametrize(("error", "kind", "words"), FAILURES)
def test_each_failure_of_the_hub_has_its_own_words(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[CrumbError], words: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(kind, match=words) as caught:
        locate("org/name@v2")
    assert str(caught.value).startswith("org/name@v2: ")
    assert caught.value.__cause__ is error


def test_only_files_of_use_at_the_top_of_a_repository_are_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}
    (tmp_path / "model.safetensors").touch()

    def remember(repository: str, **settings: Any) -> str:
        asked.update(settings, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", remember)
    assert locate("org/name@v2") == tmp_path
    assert (asked["repository"], asked["revision"]) == ("org/name", "v2")
    names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.model",
        "chat_template.jinja",
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "onnx/config.json",
        "consolidated.safetensors",
    ]
    kept = huggingface_hub.utils.filter_repo_objects(
        names, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == names[:4]


def test_the_embedded_model_is_known_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (locate("novella-7m") / "model.safetensors").is_file()
    (tmp_path / "novella-7m").mkdir()
    assert locate("novella-7m") == Path("novella-7m")  # a directory that is there wins
