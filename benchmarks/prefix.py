"""How soon the second turn of a long conversation begins: from memory, and from disk.

In: a model with a chat template, a number of tokens. Out: seconds to the first token of second
turns, over HTTP, after a restart where they come from disk; JSON. Each answer is the same as that
of a server that has read nothing before.
Files are put out of the system's memory before they are read, where the system lets them go.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from http_load import HOST, Heard, ask
from machine import describe_machine, one_line
from report import RESULTS, print_table, write_record
from serving import model_file, started, warm

CHAT = "/v1/chat/completions"
TURNS = ("And then?", "Which of them was the largest?", "Who wrote this down?")
SAID = "I have read all of it."


def turn(text: str, question: str) -> dict[str, Any]:
    """The second turn of a conversation about a text."""
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": SAID},
        {"role": "user", "content": question},
    ]
    return {"model": "m", "messages": messages, "max_tokens": 8, "temperature": 0}


def count(port: int, text: str) -> int:
    """Tokens of the first turn."""
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{HOST}:{port}/tokenize", body, headers)
    return int(json.load(urllib.request.urlopen(request, timeout=60))["count"])


def text_of(port: int, tokens: int) -> str:
    """A text of about so many tokens in the first turn, and no more."""
    lines = [f"Item {number} of {number * 7919 % 1000} things." for number in range(tokens // 4)]
    least, most = 1, len(lines)
    while least < most:
        middle = (least + most + 1) // 2
        if count(port, " ".join(lines[:middle])) <= tokens:
            least = middle
        else:
            most = middle - 1
    return " ".join(lines[:least])


def forget(directory: Path) -> None:
    """Have the system read files from disk again."""
    for path in directory.glob("*.page"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def served(options: argparse.Namespace, directory: Path | None) -> Any:
    """A server, perhaps with a directory for its pages."""
    command = [sys.executable, "-m", "crumb", "serve", f"m={options.model}", "--port", "0"]
    command += ["--context", str(options.tokens + 192), "--threads", str(options.threads)]
    command += [] if directory is None else ["--cache-dir", str(directory)]
    return started(command, r"http://[\d.]+:(\d+)/")


def hear(port: int, body: dict[str, Any]) -> Heard:
    """One answer."""
    heard = asyncio.run(ask(port, CHAT, body))
    assert heard.status == 200, heard.status
    return heard


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2", help="a file, or smollm2")
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS / "prefix.json")
    options = parser.parse_args()
    options.model = str(model_file(options.model, options))
    machine = describe_machine()
    print(one_line(machine))
    figures: dict[str, list[float]] = {"cold": [], "memory": [], "disk": []}
    texts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with served(options, directory) as port:
            asyncio.run(warm(port))
            text = text_of(port, options.tokens)
            length = count(port, text)
            figures["first turn"] = [hear(port, turn(text, "First.")).first_seconds]
            for question in TURNS:
                heard = hear(port, turn(text, question))
                figures["memory"].append(heard.first_seconds)
                texts[question] = heard.text
        for question in TURNS:
            forget(directory)
            with served(options, directory) as port:
                asyncio.run(warm(port))
                heard = hear(port, turn(text, question))
                figures["disk"].append(heard.first_seconds)
                assert heard.text == texts[question], "the cache changed an answer"
    with served(options, None) as port:
        asyncio.run(warm(port))
        heard = hear(port, turn(text, TURNS[0]))
        figures["cold"].append(heard.first_seconds)
        assert heard.text == texts[TURNS[0]], "the cache changed an answer"
    rows = [
        (name, " ".join(f"{each:.3f}" for each in seconds)) for name, seconds in figures.items()
    ]
    print_table((f"second turn of {length} tokens", "seconds to the first token"), rows)
    settings = {"tokens": length, "threads": options.threads, "time": time.time()}
    write_record(options.out, {"machine": machine, "settings": settings, "results": figures})


if __name__ == "__main__":
    main()
