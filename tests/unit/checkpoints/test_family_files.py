"""Float exports have the tensors that the family's own files have, whatever the Plan calls them.

In: tiny models whose files stack experts or hold all heads of a latent in one matrix. Out: the same
arrays under the same names; quantized ones come back close, in the same shapes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mixture_configurations import DEEPSEEK, MIXTURES
from tiny_models import write_model

from crumb.checkpoints.gptq.writer import write_gptq
from crumb.checkpoints.huggingface.writer import write_floats
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import StoredArray, read_header
from crumb.pipeline import QuantizeRequest, quantize
from crumb.solve.problem import Method, Scales, SolveSettings

HALF = np.dtype(np.float16)
WIDE = DEEPSEEK | {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 64}
WIDE |= {"q_lora_rank": 32, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32}
WIDE |= {"v_head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2}


def arrays_of(folder: Path) -> dict[str, StoredArray]:
    (file,) = folder.glob("*.safetensors")
    return read_header(file)[0]


@pytest.mark.parametrize(
    "variant", ["deepseek_v2", "deepseek_v3", "llama4_text", "gpt_oss", "granitemoe", "mixtral"]
)
def test_floats_come_back_under_the_names_of_the_family(variant: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    checkpoint = open_checkpoint(write_model(tmp_path / "source", MIXTURES[variant]))
    write_floats(checkpoint, tmp_path / "out", HALF, lambda report: None)
    before, after = arrays_of(tmp_path / "source"), arrays_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        np.testing.assert_array_equal(after[name].read(), array.read(), err_msg=name)
    again = open_checkpoint(tmp_path / "out")
    assert str(again.plan) == str(checkpoint.plan)


def test_a_quantized_latent_model_comes_back_as_floats_and_as_gptq(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = write_model(tmp_path / "source", WIDE)
    rounding = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)
    packed = tmp_path / "int8"
    quantize(QuantizeRequest(str(source), packed, bits=8, group_size=32, solve=rounding))
    checkpoint = open_checkpoint(packed)
    write_floats(checkpoint, tmp_path / "floats", HALF, lambda report: None)
    write_gptq(checkpoint, tmp_path / "gptq", "gptq")
    whole = "model.layers.1.self_attn.kv_b_proj.weight"
    expected = arrays_of(source)[whole].read()
    for out in ("floats", "gptq"):
        array = arrays_of(tmp_path / out)[whole]
        assert array.dtype == HALF
        np.testing.assert_allclose(array.read(), expected, atol=2 * np.abs(expected).max() / 255)
        again = open_checkpoint(tmp_path / out)
        for spec in checkpoint.plan.tensors():
            if "kv_b_proj" in spec.name:
                own = checkpoint.tensors.read_float(spec.name)
                np.testing.assert_array_equal(
                    again.tensors.read_float(spec.name), own.astype(HALF).astype(np.float32)
                )
