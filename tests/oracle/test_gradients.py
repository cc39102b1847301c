"""The backward pass of every family against PyTorch's automatic differentiation of the same Plan.

In: the tiny models, run by the array executor on PyTorch tensors in f64, so that autograd goes
through the rows' own references. Out: equal gradients of every tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import ENCODER_DECODERS, EVERY, make_sources, make_tokens, write_model

from crumb.run.backward import Backward, next_token_loss
from crumb.run.model import open_model

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("variant", EVERY)
def test_gradients_are_those_of_automatic_differentiation(variant: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, EVERY[variant])
    tokens, inputs = make_tokens(EVERY[variant])[:, :40], dict[str, Any]()
    if variant in ENCODER_DECODERS:
        inputs = {"source": make_sources(EVERY[variant])[:, :57]}
    ours = open_model(str(folder))
    theirs = open_model(str(folder), torch.as_tensor)
    for model, convert in ((ours, np.float64), (theirs, None)):
        for stage in model.plan.stages:
            for name, array in model.stage_weights(stage).items():
                if convert is None:
                    model._kept[name] = array.double().requires_grad_()
                else:
                    model._kept[name] = np.asarray(array, convert)
    names = tuple(spec.name for spec in ours.plan.tensors())
    backward = Backward(ours, tokens, trained=names, inputs=inputs)
    loss, toward = next_token_loss(backward.logits(), tokens)
    gradients = backward.gradients(toward)
    texts = torch.from_numpy(tokens)
    read = {name: torch.from_numpy(array) for name, array in inputs.items()}
    logits = Backward(theirs, texts, inputs=read).logits()
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), texts[:, 1:].reshape(-1)
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-9)
    expected.backward()
    for name in names:
        theirs_gradient = theirs._kept[name].grad
        if theirs_gradient is None:  # only compared with others, as what chooses experts is
            assert not np.any(gradients.get(name, 0.0)), name
            continue
        reference = theirs_gradient.numpy()
        # f64 throughout but for the derivative of erf, whose approximation is off by 1e-6.
        # Biases of keys that do not rotate change nothing: their gradient is roundings around 0.
        allowed = 1e-5 * np.abs(reference).max() + 1e-14
        np.testing.assert_allclose(gradients[name], reference, rtol=0, atol=allowed, err_msg=name)
