"""`crumb chat` from a pipe: turns, history, commands, a full context, and refusals.

In: a copy of the embedded model with a small chat template. Out: answers on stdout.
"""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path

import pytest
from command_line import Finished, crumb

from crumb.cli.conversation import Conversation
from crumb.cli.generation_options import TextOptions
from crumb.cli.turn_reader import TurnReader
from crumb.embedded import MODELS
from crumb.errors import UsageError
from crumb.run.generation import TextPiece
from crumb.run.load import load

Capsys = pytest.CaptureFixture[str]
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CONTEXT = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with a chat template."""
    path = tmp_path_factory.mktemp("chat") / "novella"
    shutil.copytree(MODELS["novella-7m"], path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture
def talk(model: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch):
    """talk(lines, *options) -> the finished chat."""

    def run(lines: list[str], *options: object) -> Finished:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        length = [] if "--max-tokens" in options else ["--max-tokens", 6]
        return crumb(capsys, "chat", model, "--ignore-end", *length, *options)

    return run


def test_each_line_of_a_pipe_is_a_turn_and_the_end_is_exit_0(talk, tmp_path: Path) -> None:
    kept = tmp_path / "chat.json"
    finished = talk(["Hello", "", "And then?", f"/save {kept}"])
    assert finished.code == 0
    messages = json.loads(kept.read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    answers = [message["content"] for message in messages[1::2]]
    assert finished.out == "".join(answer.removesuffix("\n") + "\n" for answer in answers)
    assert finished.err.count("tokens/s, read") == 2


def test_lines_join_by_a_backslash_and_within_three_quotes() -> None:
    lines = iter(["one \\", "two", '"""first', "", 'last"""', '"""', "open"])

    def line(prompt: str) -> str:
        del prompt
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    reader = TurnReader(line)
    assert [reader.read() for _ in range(3)] == ["one \ntwo", "first\n\nlast", "open"]
    with pytest.raises(EOFError):
        reader.read()


def test_a_turn_reads_only_what_is_new(model: Path) -> None:
    """All full pages of what was said before come from the cache."""
    with load(model) as loaded:
        chat = Conversation(loaded, TextOptions(max_tokens=1))
        said = "The old man looked at the sea and the sea looked at the old man. " * 4
        first = chat.answer(said, lambda index, piece: None, threading.Event()).generation
        second = chat.answer("Go on", lambda index, piece: None, threading.Event()).generation
        page_tokens = 16
        assert first.cached_tokens == 0
        assert (
            second.cached_tokens >= first.prompt_tokens // page_tokens * page_tokens - page_tokens
        )
        assert second.cached_tokens > 0


def test_a_full_context_drops_the_oldest_turns_but_not_the_system_message(
    talk, tmp_path: Path
) -> None:
    kept = tmp_path / "chat.json"
    turns = [f"Turn {number} of a long story about the sea" for number in range(8)]
    finished = talk(
        [*turns, f"/save {kept}"], "--context", CONTEXT, "--system", "Be brief.", "--max-tokens", 16
    )
    assert finished.code == 0
    assert "oldest turns dropped: " in finished.err
    messages = json.loads(kept.read_text())
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert messages[1]["role"] == "user"
    assert messages[1]["content"] != turns[0]
    assert messages[-2]["content"] == turns[-1]


def test_an_answer_that_fills_the_context_says_so(talk) -> None:
    finished = talk(["Hello"], "--context", 32, "--max-tokens", 100)
    assert "the context is full: the answer ends here" in finished.err


def test_a_message_longer_than_the_context_is_refused_and_forgotten(model: Path) -> None:
    with load(model, context_tokens=CONTEXT) as loaded:
        chat = Conversation(loaded, TextOptions(max_tokens=2))
        chat.answer("Hello", lambda index, piece: None, threading.Event())
        before = list(chat.turns)
        with pytest.raises(UsageError, match="longer than the context"):
            chat.answer("word " * 300, lambda index, piece: None, threading.Event())
        assert chat.turns == before


def test_a_cancelled_answer_stays_as_far_as_it_came(model: Path) -> None:
    cancelled = threading.Event()
    pieces: list[TextPiece] = []

    def stop_after_three(index: int, piece: TextPiece) -> None:
        del index
        pieces.append(piece)
        if len(pieces) == 3:
            cancelled.set()

    with load(model) as loaded:
        chat = Conversation(loaded, TextOptions(max_tokens=1000, ignore_end=True))
        answer = chat.answer("Hello", stop_after_three, cancelled)
        assert answer.generation.finish_reason == "cancelled"
        assert 3 <= len(answer.generation.tokens) < 1000  # the engine does not wait for a reader
        assert chat.turns[-1].content == answer.generation.text != ""


def test_an_answer_cancelled_before_it_began_takes_the_turn_back(model: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with load(model) as loaded:
        chat = Conversation(loaded, TextOptions())
        chat.answer("Hello", lambda index, piece: None, cancelled)
        assert chat.turns == []


def test_commands_change_the_chat(talk, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    finished = talk(
        [
            "One",
            "Two",
            "/undo",
            "/system Be kind",
            f"/save {first}",
            "/new",
            f"/save {second}",
            f"/load {first}",
            "/set temperature 0.5",
            "/set stop none",
            "/set ignore-end off",
            "/stats",
            "/help",
            "/quit",
            "never said",
        ]
    )
    assert finished.code == 0
    assert [message["content"] for message in json.loads(first.read_text())[:2]] == [
        "Be kind",
        "One",
    ]
    assert len(json.loads(first.read_text())) == 3
    assert json.loads(second.read_text()) == [{"role": "system", "content": "Be kind"}]
    for said in ("temperature 0.5", "ignore_end False", "generated 12 tokens", "/retry", "peak "):
        assert said in finished.err, said
    assert len(finished.err.split("tokens/s, read")) == 1 + 2


def test_retry_answers_again_with_another_seed(talk, tmp_path: Path) -> None:
    kept, again = tmp_path / "kept.json", tmp_path / "again.json"
    lines = ["Hello", f"/save {kept}", "/retry", f"/save {again}"]
    assert talk(lines, "--temperature", 3).code == 0
    first, second = (json.loads(path.read_text()) for path in (kept, again))
    assert first[0] == second[0]
    assert len(second) == 2
    assert first[1] != second[1]
    finished = talk(lines, "--temperature", 0)
    assert "temperature 0 gives the same answer" in finished.err
    assert json.loads(kept.read_text()) == json.loads(again.read_text())


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        ("/nope", 2, "/nope"),
        ("/set warmth 1", 2, "warmth"),
        ("/set temperature hot", 2, "hot"),
        ("/set temperature 1000", 2, "temperature"),
        ("/undo", 2, "nothing has been said"),
        ("/retry", 2, "nothing has been said"),
        ("/save", 2, "which file"),
        ("/load /nonexistent/chat.json", 1, "/nonexistent/chat.json"),
    ],
)
def test_from_a_pipe_an_error_ends_the_chat_with_its_code(
    line: str, code: int, named: str, talk
) -> None:
    finished = talk([line, "never said"])
    assert finished.code == code
    assert finished.out == ""
    assert named in finished.err.splitlines()[-1]


def test_a_file_that_holds_no_messages_is_refused(talk, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('{"role": 3}')
    finished = talk([f"/load {tmp_path / 'odd.json'}"])
    assert finished.code == 2
    assert "no file of messages" in finished.err


def test_a_model_without_a_template_is_sent_to_generate(capsys: Capsys) -> None:
    finished = crumb(capsys, "chat", "novella-7m")
    assert finished.code == 2
    assert "`crumb generate novella-7m`" in finished.err
