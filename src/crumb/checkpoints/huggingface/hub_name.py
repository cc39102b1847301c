"""What a user may write for a model on the Hugging Face hub, taken apart.

In: "org/name", "org/name@revision", "org/name/file.gguf", "org/name:Q4_K_M", each also behind
hf.co/ or huggingface.co/, or an address copied from a browser. Out: a HubName.
Refuses addresses of other sites, and of data sets and spaces; what is no name at all is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from crumb.errors import ModelNotFound

SITE = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/|hf://", re.IGNORECASE)
OTHER_SITE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
NO_MODELS = ("datasets", "spaces", "papers", "collections", "docs", "blog")
"""First words of addresses on the hub that lead to no model."""

PAGE = re.compile(r"/(?:tree|blob|resolve|raw)/([^/@]+)")
"""What the hub's pages put between a repository and a file: their kind and the revision."""

NAME = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+?)"
    r"(?P<file>(?:/[\w.+ -]+)*/[\w.+ -]+\.(?:gguf|safetensors|json))?"
    r"(?::(?P<type>[\w.-]+))?"
    r"(?:@(?P<revision>[\w./-]+))?",
    re.ASCII | re.IGNORECASE,
)

GGUF = ".gguf"
LATEST = "latest"
"""What ollama's users write for no choice of a type."""


@dataclass(frozen=True)
class HubName:
    """A repository, and what of it is meant."""

    repository: str
    revision: str | None = None
    file: str | None = None  # a GGUF file of it, with its folders
    type: str | None = None  # the GGUF file of this type, such as Q4_K_M

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def parse_hub_name(text: str) -> HubName | None:
    """The name that a text is; None for none. Raises: ModelNotFound for addresses elsewhere."""
    site = SITE.match(text)
    if site is None and OTHER_SITE.match(text):
        raise ModelNotFound(
            "models are fetched from the Hugging Face hub alone",
            where=repr(text[:200]),
            do="Download this file and give its path",
        )
    rest = text if site is None else unquote(text[site.end() :].partition("?")[0].partition("#")[0])
    if site is not None and rest.partition("/")[0] in NO_MODELS:
        raise ModelNotFound("this address leads to no model", where=repr(text[:200]))
    page = PAGE.search(rest)
    if site is not None and page is not None:
        rest = f"{rest[: page.start()]}{rest[page.end() :].rstrip('/')}@{page[1]}"
    named = NAME.fullmatch(rest.rstrip("/") if site is not None else rest)
    if named is None or (named["file"] and named["type"]):
        return None
    file = (named["file"] or "")[1:]
    of_gguf = file.lower().endswith(GGUF)
    if file and not of_gguf and site is None:
        return None
    type = None if named["type"] == LATEST else named["type"]
    return HubName(named["repository"], named["revision"], file if of_gguf else None, type)
