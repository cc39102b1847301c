"""Exports keep every weight where the container can, and say what they changed where it cannot.

In: the tiny checkpoint and novella-7m quantized in several formats. Out: files of other containers,
opened again: the same weights, or the change that the report names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import QUERY, make_tensors, write_checkpoint

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import StoredCodes
from crumb.errors import OutputConflict, SolveError, UsageError
from crumb.exporting import Container, ExportRequest, ExportResult, export
from crumb.formats.catalog import ZeroKind
from crumb.pipeline import QuantizeRequest, quantize
from crumb.run.load import load
from crumb.run.model import Model
from crumb.solve.problem import Method, Scales, SolveSettings

ROUNDING = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)
TOKENS = np.arange(40)[None, :] % 256

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """quantized(bits, group_size, zero, wide, codes) -> a crumb directory of the tiny checkpoint.

    A wide one has inputs in whole super-blocks.
    """
    folder = tmp_path_factory.mktemp("export")
    tensors = {False: make_tensors(), True: make_tensors(hidden=256, feed_forward=256)}
    sources = [write_checkpoint(folder / f"{wide}", tensors[wide]) for wide in (False, True)]
    for source in sources:
        tokenizer = json.loads((source / "tokenizer.json").read_text())
        tokenizer["pre_tokenizer"]["use_regex"] = True  # GGUF has a name for this one: gpt-2
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))

    def make(
        bits: int,
        group_size: int = 32,
        zero: str = "fixed",
        wide: bool = False,
        codes: str = "int",
    ) -> Path:
        out = folder / f"{codes}{bits}-{group_size}-{zero}-{wide}"
        if not out.exists():
            quantize(
                QuantizeRequest(
                    model=str(sources[wide]),
                    out=out,
                    bits=bits,
                    group_size=group_size,
                    zero=ZeroKind(zero),
                    codes=codes,
                    solve=ROUNDING,
                )
            )
        return out

    return make


def weights(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    return {
        spec.name: checkpoint.tensors.read_float(spec.name) for spec in checkpoint.plan.tensors()
    }


def exported(model: Path, out: Path, to: Container, **settings: object) -> ExportResult:
    return export(ExportRequest(str(model), out, to, **settings))  # type: ignore[arg-type]


def changes(before: Path, after: Path) -> dict[str, float]:
    """Relative change of every tensor between two models, 0 where it is the same bits."""
    old, new = weights(open_checkpoint(before)), weights(open_checkpoint(after))
    assert old.keys() == new.keys()
    return {
        name: float(np.linalg.norm(new[name] - old[name]) / max(np.linalg.norm(old[name]), 1e-30))
        for name in old
    }


EXACT = [
    (4, 32, "fixed", Container.GGUF),
    (8, 32, "fixed", Container.GGUF),
    (5, 32, "fixed", Container.GGUF),
    (2, 64, "fixed", Container.GGUF),
    (3, 32, "variable", Container.CRUMB),
    (6, 32, "minimum", Container.CRUMB),
]


@pytest.mark.parametrize(("bits", "group_size", "zero", "to"), EXACT)
def test_what_the_container_holds_is_exact(
    bits: int, group_size: int, zero: str, to: Container, quantized: Make, tmp_path: Path
) -> None:
    model, out = quantized(bits, group_size, zero), tmp_path / "out.gguf"
    result = exported(model, out, to, strict=True)
    assert not result.changed
    assert len(result.tensors) == len(open_checkpoint(model).plan.tensors())
    assert set(changes(model, out).values()) == {0.0}
    logits = [Model(open_checkpoint(path)).logits(TOKENS) for path in (model, out)]
    np.testing.assert_array_equal(logits[0], logits[1])


def test_scales_that_are_powers_of_two_are_exact_in_gguf_and_compressed_tensors(
    quantized: Make, tmp_path: Path
) -> None:
    model, out = quantized(4, codes="mxfp4"), tmp_path / "out.gguf"
    result = exported(model, out, Container.GGUF, strict=True)
    assert {report.target for report in result.tensors} == {"F32", "Q8_0", "MXFP4"}
    assert set(changes(model, out).values()) == {0.0}
    result = exported(model, tmp_path / "other", Container.COMPRESSED_TENSORS)
    assert [report.name for report in result.changed] == ["model.embed_tokens.weight"]
    back = open_checkpoint(tmp_path / "other").tensors.entry(QUERY)
    assert isinstance(back, StoredCodes)
    assert back.format.row.name == "mxfp4"


@pytest.mark.parametrize("bits", [4, 5])
def test_a_format_that_the_embedding_does_not_share_is_exact_in_the_layers(
    bits: int, quantized: Make, tmp_path: Path
) -> None:
    model, out = quantized(bits, 32, "minimum"), tmp_path / "out.gguf"
    result = exported(model, out, Container.GGUF)
    assert [report.name for report in result.changed] == ["model.embed_tokens.weight"]
    assert [name for name, value in changes(model, out).items() if value] == [
        "model.embed_tokens.weight"
    ]


@pytest.mark.parametrize("to", [Container.GPTQ, Container.GPTQ_V2, Container.COMPRESSED_TENSORS])
def test_the_layers_of_other_engines_directories_are_exact_and_the_embedding_is_told(
    to: Container, quantized: Make, tmp_path: Path
) -> None:
    model = quantized(4)
    result = exported(model, tmp_path / "out", to)
    assert [report.name for report in result.changed] == ["model.embed_tokens.weight"]
    found = changes(model, tmp_path / "out")
    for report in result.tensors:
        assert found[report.name] == pytest.approx(report.change, rel=1e-3)
    with load(tmp_path / "out", threads=1) as language_model:
        assert language_model.generate("a", max_tokens=3, ignore_end=True).tokens


@pytest.mark.parametrize(("bits", "zero"), [(3, "fixed"), (2, "variable"), (6, "minimum")])
def test_what_gguf_cannot_hold_is_reported_with_its_change(
    bits: int, zero: str, quantized: Make, tmp_path: Path
) -> None:
    model, out = quantized(bits, 32, zero, wide=True), tmp_path / "out.gguf"
    result = exported(model, out, Container.GGUF)
    assert result.changed
    found = changes(model, out)
    for report in result.tensors:
        assert found[report.name] == pytest.approx(report.change, rel=1e-3, abs=1e-12)
        assert bool(report.note) == (not report.exact)


def test_strict_takes_a_larger_type_or_refuses(quantized: Make, tmp_path: Path) -> None:
    model, out = quantized(3), tmp_path / "out.gguf"
    assert not exported(model, out, Container.GGUF, strict=True).changed
    assert set(changes(model, out).values()) == {0.0}
    with pytest.raises(UsageError, match="would be changed and --strict forbids it"):
        exported(quantized(6, 32, "minimum"), tmp_path / "no.gguf", Container.GGUF, strict=True)
    assert not list(tmp_path.glob("no*"))


@pytest.mark.parametrize("float_type", ["float32", "float16", "bfloat16"])
def test_a_float_directory_has_the_decoded_weights(
    float_type: str, quantized: Make, tmp_path: Path
) -> None:
    model = quantized(4)
    result = exported(model, tmp_path / "out", Container.SAFETENSORS, float_type=float_type)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert "quantization_config" not in checkpoint.configuration
    found = changes(model, tmp_path / "out")
    assert all(value <= 2.0**-8 for value in found.values()), "half a step of bfloat16"
    if float_type == "float32":
        assert not result.changed


def test_there_and_back_is_the_same_model(quantized: Make, tmp_path: Path) -> None:
    model = quantized(4)
    exported(model, tmp_path / "one.gguf", Container.GGUF)
    exported(tmp_path / "one.gguf", tmp_path / "two", Container.CRUMB)
    exported(tmp_path / "two", tmp_path / "three.gguf", Container.GGUF)
    first, last = (tmp_path / name for name in ("one.gguf", "three.gguf"))
    assert set(changes(first, last).values()) == {0.0}
    one, three = open_checkpoint(first), open_checkpoint(last)
    assert one.configuration == three.configuration
    assert one.files.read("tokenizer.json") == three.files.read("tokenizer.json")


def test_an_output_that_exists_is_not_replaced(quantized: Make, tmp_path: Path) -> None:
    for to, name in ((Container.GGUF, "a.gguf"), (Container.CRUMB, "b"), (Container.GPTQ, "c")):
        out = tmp_path / name
        exported(quantized(4), out, to)
        before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
        with pytest.raises(OutputConflict, match="will not be replaced"):
            exported(quantized(4), out, to)
        assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_what_a_killed_export_left_is_named_and_not_touched(
    quantized: Make, tmp_path: Path
) -> None:
    (tmp_path / "a.partial").mkdir()
    for to in (Container.CRUMB, Container.GPTQ, Container.SAFETENSORS):
        with pytest.raises(OutputConflict, match=r"a\.partial: another run .* was killed"):
            exported(quantized(4), tmp_path / "a", to)
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of float32, float16, bfloat16"):
        ExportRequest("m", tmp_path, Container.SAFETENSORS, float_type="float8")
    with pytest.raises(UsageError, match="only gguf has types"):
        ExportRequest("m", tmp_path, Container.GPTQ, type="Q4_K")
    model, out = write_checkpoint(tmp_path / "t"), tmp_path / "o.gguf"
    with pytest.raises(UsageError, match="no such GGUF type"):
        exported(model, out, Container.GGUF, type="Q9_Z")
    with pytest.raises(UsageError, match="only safetensors has float types"):
        ExportRequest("m", tmp_path, Container.GPTQ, float_type="float32")
    with pytest.raises(UsageError, match=r"a name that ends in \.gguf"):
        ExportRequest("m", tmp_path / "o", Container.GGUF)


def test_a_float_directory_says_the_type_its_floats_have(quantized: Make, tmp_path: Path) -> None:
    """A loader rounds to the type that config.json names: bfloat16 overflows in float16."""
    source = write_checkpoint(tmp_path / "b", dtype="BF16", configuration={"dtype": "bfloat16"})
    exported(source, tmp_path / "copy", Container.SAFETENSORS)
    assert open_checkpoint(tmp_path / "copy").configuration["dtype"] == "bfloat16"
    exported(quantized(4), tmp_path / "out", Container.SAFETENSORS)
    assert open_checkpoint(tmp_path / "out").configuration["dtype"] == "float16"


def test_a_gguf_file_may_lie_in_a_new_directory(quantized: Make, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "a.gguf"
    assert exported(quantized(4), out, Container.GGUF).out == out
    assert [path.name for path in out.parent.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize("gguf_type", [None, "Q4_0"])
def test_weights_that_are_no_numbers_are_not_written_to_gguf(
    gguf_type: str | None, quantized: Make, tmp_path: Path
) -> None:
    tensors = make_tensors()
    tensors[QUERY][3, 5] = np.nan
    source = write_checkpoint(tmp_path / "nan", tensors)
    shutil.copy(quantized(4) / "tokenizer.json", source)  # one that GGUF has a name for
    with pytest.raises(SolveError, match=f"{QUERY}: a weight is not finite"):
        exported(source, tmp_path / "nan.gguf", Container.GGUF, type=gguf_type)
    assert not list(tmp_path.glob("nan.gguf*"))
