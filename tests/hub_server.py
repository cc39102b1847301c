"""A stand-in for the Hugging Face hub: a server of this machine that speaks its protocol.

In: repositories: file names and contents, of large files the first bytes and a size. Out: its
address for HF_ENDPOINT, and how many bytes of each file it gave away. It answers what the hub's
library asks for a listing, for a whole file and for a range.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = re.compile(r"/api/models/([\w.-]+/[\w.-]+?)(?:/(revision|tree)/([\w.-]+))?(?:\?.*)?")
FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w./-]+)(?:\?.*)?")

LARGE = (".safetensors", ".gguf")
"""Endings of files that the hub lists with their hash."""


@dataclass(frozen=True)
class HeadOfFile:
    """A large file: what it begins with; the rest is zeros."""

    content: bytes
    size_bytes: int

    def part(self, begin: int, end: int) -> bytes:
        return self.content[begin:end].ljust(end - begin, b"\0")


@dataclass
class HubServer:
    """The hub, its repositories by name."""

    repositories: dict[str, dict[str, HeadOfFile]] = field(default_factory=dict)
    given: Counter[str] = field(default_factory=Counter)  # file -> bytes that left
    cut_whole: dict[str, int] = field(default_factory=dict)  # file -> bytes, then it hangs up, once
    listed_hashes: dict[str, str] = field(default_factory=dict)  # file -> another hash than its own
    address: str = ""

    def add(self, repository: str, files: Mapping[str, bytes | HeadOfFile]) -> None:
        self.repositories[repository] = {
            name: HeadOfFile(each, len(each)) if isinstance(each, bytes) else each
            for name, each in files.items()
        }

    def listing(self, repository: str) -> dict[str, Any]:
        files = self.repositories[repository]
        siblings = [
            {"rfilename": name, "size": file.size_bytes}
            | ({"lfs": self.listed(name, file)} if name.endswith(LARGE) else {})
            for name, file in files.items()
        ]
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False}

    def listed(self, name: str, file: HeadOfFile) -> dict[str, Any]:
        pointer = self.pointer(file)
        return pointer | {"sha256": self.listed_hashes.get(name, pointer["sha256"])}

    def pointer(self, file: HeadOfFile) -> dict[str, Any]:
        sha256 = hashlib.sha256(file.content).hexdigest()
        return {"size": file.size_bytes, "sha256": sha256, "pointerSize": 100}


class HubHandler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        page, file = PAGE.fullmatch(self.path), FILE.fullmatch(self.path)
        if file is not None and file[3] in self.hub.repositories.get(file[1], {}):
            self.give_file(file[1], file[3], with_body)
        elif page is not None and page[1] in self.hub.repositories:
            listing: Any = self.hub.listing(page[1])
            if page[2] == "tree":
                listing = [
                    {"type": "file", "path": each["rfilename"], "size": each["size"], "oid": ""}
                    for each in listing["siblings"]
                ]
            self.give(200, json.dumps(listing).encode(), {}, with_body)
        else:
            code = {"X-Error-Code": "EntryNotFound" if file else "RepoNotFound"}
            self.give(404, b"", code, with_body)

    def give_file(self, repository: str, name: str, with_body: bool) -> None:
        stored = self.hub.repositories[repository][name]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin, end = 0, stored.size_bytes
        headers = {
            "ETag": f'"{self.hub.pointer(stored)["sha256"]}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(stored.size_bytes),
        }
        if asked is not None:
            begin = int(asked[1])
            end = min(end, int(asked[2]) + 1 if asked[2] else end)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{stored.size_bytes}"
        headers["Content-Length"] = str(end - begin)
        content = stored.part(begin, end) if with_body else b""
        if with_body and end == stored.size_bytes and name in self.hub.cut_whole:
            content = content[: self.hub.cut_whole.pop(name)]
            self.close_connection = True
        self.hub.given[name] += len(content)
        self.give(200 if asked is None else 206, content, headers, with_body)

    def give(self, code: int, content: bytes, headers: Mapping[str, str], with_body: bool) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(content))} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextmanager
def serve_hub(hub: HubServer) -> Iterator[HubServer]:
    """Serve it while the `with` lasts."""
    handler = type("Handler", (HubHandler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
