"""What tests of checkpoints share.

In: nothing. Out: fixtures.
"""

from __future__ import annotations

import pytest

from crumb.checkpoints.gguf import writer


@pytest.fixture
def without_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """GGUF files are written as if their models had no tokenizer."""
    monkeypatch.setattr(writer, "tokenizer_metadata", lambda files, configuration: {})
