"""Generation from a session: what is fed, and where it ends."""

import pytest

from crumb.errors import UsageError
from crumb.run.model import open_model
from crumb.run.sampling import Sampling
from crumb.run.session import generate


@pytest.fixture(scope="module")
def model():
    return open_model("novella-7m")


def test_a_generation_may_fill_the_context_to_its_last_place(model):
    positions = model.plan.max_positions
    prompt = model.tokenizer.encode("The sea was calm. " * 600)[: positions - 1]
    # The second token needs no place after it: nothing is predicted from it.
    assert len(list(generate(model, prompt, 2, Sampling()))) == 2
    with pytest.raises(UsageError, match="context"):
        list(generate(model, prompt, 3, Sampling()))


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(model):
    prompt = model.tokenizer.encode("The old man")
    texts = [
        list(generate(model, prompt, 12, Sampling(temperature=1.0, seed=seed)))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
