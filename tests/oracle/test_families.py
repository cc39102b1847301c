"""Every family against transformers as it is installed, on tiny random models it writes itself.
Those that it does not have are held to their authors' code in tests/oracle/test_rwkv.py.

In: the table of tiny models, whose golden files are checked here too. Needs PyTorch.
Compared: logits of a prompt, cached decoding, the same executor on torch tensors, the golden
files, and what a missing or null key of a configuration means.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tiny_models import (
    ATTENTION,
    ENCODER_DECODERS,
    EVERY,
    GOLDEN,
    OF_TRANSFORMERS,
    VARIANTS,
    make_tokens,
    tolerance,
)

from crumb.architectures.registry import families, plan_of
from crumb.cli.families import differences
from crumb.errors import CrumbError
from crumb.operations.rotary import Rotary
from crumb.run.model import Model, open_model
from crumb.run.session import Session

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

Written = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recorder() -> ModuleType:
    return importlib.import_module("record_golden")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A directory written by transformers and the logits of its model, by variant."""

    @cache
    def write(variant: str) -> tuple[Path, Any]:
        settings = deepcopy(VARIANTS[variant])
        del settings["model_type"]
        config = transformers.AutoConfig.for_model(VARIANTS[variant]["model_type"], **settings)
        model = transformers.AutoModelForCausalLM.from_config(
            config,
            attn_implementation=ATTENTION.get(variant, "eager"),
            experts_implementation="eager",
        )
        torch.manual_seed(len(variant))
        looked_up = {id(each.weight) for each in model.modules() if hasattr(each, "num_embeddings")}
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                spread, centre = 0.3, 0.0 if name.endswith(".bias") else 1.0
                if tensor.ndim >= 2:
                    centre = 0.0
                    spread = 1.0 if id(tensor) in looked_up else 1.5 / tensor.shape[-1] ** 0.5
                tensor.normal_(centre, spread)
            for name, tensor in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    tensor.normal_(0.0, 0.3)
            folder = tmp_path_factory.mktemp(variant)
            model.save_pretrained(folder)  # before it runs: RWKV halves its weights then
            tokens = torch.from_numpy(make_tokens(VARIANTS[variant]))
            logits = model.eval()(tokens, use_cache=False).logits.numpy()
        return folder, logits

    return write


def test_every_family_has_a_tiny_model() -> None:
    of_encoders = {each["model_type"] for each in ENCODER_DECODERS.values()}
    assert {each["model_type"] for each in VARIANTS.values()} == set(families()) - of_encoders


@pytest.mark.parametrize("variant", OF_TRANSFORMERS)
def test_logits_of_a_prompt_are_those_of_transformers(variant: str, written: Written) -> None:
    folder, expected = written(variant)
    model = open_model(str(folder))
    logits = model.logits(make_tokens(VARIANTS[variant]))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance(model.plan, expected))


@pytest.mark.parametrize("variant", OF_TRANSFORMERS)
def test_every_tensor_that_transformers_writes_is_in_the_plan(
    variant: str, written: Written
) -> None:
    model = open_model(str(written(variant)[0]))
    assert set(model.checkpoint.tensors.entries) == {spec.name for spec in model.plan.tensors()}


@pytest.mark.parametrize("variant", OF_TRANSFORMERS)
def test_cached_decoding_gives_the_logits_of_transformers(variant: str, written: Written) -> None:
    folder, expected = written(variant)
    model, tokens = open_model(str(folder)), make_tokens(VARIANTS[variant])
    one_by_one, chunks = Session(model), Session(model)
    singly = [one_by_one.feed([token]) for token in tokens[0]]
    split = [chunks.feed(part) for part in np.split(tokens[1], [1, 30, 31, 140])]
    allowed = tolerance(model.plan, expected)
    np.testing.assert_allclose(np.concatenate(singly), expected[0], rtol=0, atol=allowed)
    np.testing.assert_allclose(np.concatenate(split), expected[1], rtol=0, atol=allowed)


@pytest.mark.parametrize("variant", OF_TRANSFORMERS)
def test_the_executor_runs_on_torch_tensors_and_agrees_with_numpy(
    variant: str, written: Written
) -> None:
    model, tokens = open_model(str(written(variant)[0])), make_tokens(VARIANTS[variant])
    on_torch = Model(model.checkpoint, torch.asarray)
    expected = model.logits(tokens)
    allowed = tolerance(model.plan, expected)
    logits = on_torch.logits(torch.from_numpy(tokens))
    assert isinstance(logits, torch.Tensor)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=allowed)
    session = Session(on_torch)
    halves = np.concatenate([session.feed(part) for part in np.split(tokens[0], 2)])
    np.testing.assert_allclose(halves, expected[0], rtol=0, atol=allowed)


@pytest.mark.parametrize("variant", EVERY)
def test_the_golden_files_are_what_transformers_gives_now(
    variant: str, recorder: ModuleType
) -> None:
    """Logits and Plan; how a configuration is spelled may change with its version."""
    stated, logits = recorder.golden(variant)
    recorded = json.loads((GOLDEN / f"{variant}.json").read_text())
    assert stated["plan"] == recorded["plan"]
    with np.load(GOLDEN / f"{variant}.npz") as arrays:
        allowed = tolerance(plan_of(stated["configuration"]), logits)
        np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=allowed)


@pytest.mark.parametrize("variant", EVERY)
def test_log_probabilities_and_greedy_text_are_those_of_transformers(variant: str) -> None:
    """Of a prompt and of cached decoding by the native engine; docs/families.md has the figures."""
    module = importlib.import_module("differences")
    compared = module.compare(variant)
    assert compared.ours == compared.theirs
    recorded = differences()[EVERY[variant]["model_type"]]
    for kind, most in module.LARGEST.items():  # another machine rounds elsewhere
        assert getattr(compared, kind) <= min(most, 4 * recorded[kind]), kind


@pytest.mark.parametrize("change", ["missing", "null"])
@pytest.mark.parametrize("variant", [*OF_TRANSFORMERS, *ENCODER_DECODERS])
def test_a_key_left_out_or_null_means_what_it_means_to_transformers_or_is_refused(
    variant: str, change: str, recorder: ModuleType
) -> None:
    compared = 0
    for key in EVERY[variant].keys() - {"model_type"}:
        configuration = EVERY[variant] | {key: None}
        if change == "missing":
            del configuration[key]
        try:
            ours = str(plan_of(configuration))
        except CrumbError:
            continue
        theirs = recorder.understood(configuration)
        assert theirs is None or ours == theirs, key
        compared += theirs is not None
    assert compared >= {"missing": 5, "null": 2}[change], "most were refused: nothing was compared"


ROPES = {
    "linear": {},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {},
    "yarn-scales": {"mscale": 0.7, "mscale_all_dim": 0.3},
    "yarn-one-scale": {"mscale": 0.7},
    "yarn-betas": {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    "yarn-other-scale": {"mscale_all_dim": 0.3},
    "yarn-smooth": {"truncate": False},
    "yarn-factor": {"attention_factor": 0.8},
}


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_are_those_of_transformers_over_many_lengths_and_factors(name: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = name.partition("-")[0]
    for head_dim, theta in ((10, 300.0), (64, 10000.0), (128, 500000.0)):
        for factor, original in ((1.0, 64), (2.0, 6), (3.5, 40), (8.0, 8192), (40.0, 160)):
            scaling = ROPES[name] | {"rope_type": kind, "factor": factor, "rope_theta": theta}
            if kind != "linear":
                scaling["original_max_position_embeddings"] = original
            configuration = VARIANTS["llama"] | {"rope_parameters": scaling, "head_dim": head_dim}
            settings = {key: value for key, value in configuration.items() if key != "model_type"}
            config = transformers.LlamaConfig(**settings)
            expected, magnitude = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
            rope = next(
                operation.rope
                for operation in plan_of(configuration).stages[1].operations
                if isinstance(operation, Rotary)
            )
            # transformers computes in f32: a power is off by log(theta) units of 2^-24, and what
            # llama3 makes of it by as many for each of up to 4 turns.
            allowed = 8 * (math.log(theta) + 4) * 2.0**-24
            np.testing.assert_allclose(rope.frequencies(), expected.numpy(), rtol=allowed)
            assert math.isclose(rope.magnitude(), magnitude, rel_tol=1e-15)
