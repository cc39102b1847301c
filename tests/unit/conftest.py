"""A stand-in for the Hugging Face cache: what was "downloaded" lies there, and there is no network.

The layout is the hub's own: refs name a commit, a snapshot of the commit links to blobs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import huggingface_hub.constants
import pytest

Store = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """store(repository, files, revision="main", kind="model") -> the snapshot directory."""
    cache = tmp_path / "hf" / "hub"
    # The library reads its environment when it is imported, so the environment comes too late.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def store(
        repository: str, files: Mapping[str, bytes], revision: str = "main", kind: str = "model"
    ) -> Path:
        root = cache / f"{kind}s--{repository.replace('/', '--')}"
        (root / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(COMMIT)
        (root / "blobs").mkdir(exist_ok=True)
        snapshot = root / "snapshots" / COMMIT
        for name, content in files.items():
            blob = root / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(blob)
        return snapshot

    return store
