"""Quantized models that are damaged, of another version, or not what their metadata says.

In: a crumb directory, broken on purpose. Out: one line that names the file or matrix; what still
can be shown is shown.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import crumb, eval_line, quantize_line, refusal, succeed
from tiny_checkpoint import QUERY, entry, write_checkpoint, write_raw

from crumb.cli.main import main

Capsys = pytest.CaptureFixture[str]
Header = dict[str, Any]
MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized tiny checkpoint with integer zero points."""
    place = tmp_path_factory.mktemp("container")
    model = write_checkpoint(place / "tiny")
    line = quantize_line(model, place / "out", method="round", zero="variable")
    assert main(line) == 0
    return place / "out"


@pytest.fixture
def container(pristine: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(pristine, tmp_path / "container"))


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def change_header(path: Path, change: Callable[[Header], None]) -> None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    write_raw(path, json.dumps(header).encode(), raw[8 + length :])


def test_the_container_is_fine_before_it_is_broken(container: Path, capsys: Capsys) -> None:
    succeed(capsys, "show", container)
    succeed(capsys, *eval_line(container))


OTHERS: list[Any] = [
    {"quant_method": "crumb", "layout": "tile", "layout_version": 2},
    {"quant_method": "crumb", "layout": "tile", "layout_version": "1"},
    {"quant_method": "crumb", "layout": "tiles", "layout_version": 1},
    {"quant_method": "crumb", "layout": ["tile"], "layout_version": 1},
    {"quant_method": "crumb"},
    "crumb",
]

UNKNOWN_METHODS: list[Any] = [{"quant_method": "bitsandbytes"}, {}, [], 7, {"quant_method": 3}]


REFUSED = [(each, "crumb, layout tile, layout_version 1") for each in OTHERS]
REFUSED += [
    (each, "crumb or gptq or awq or compressed-tensors or mlx or mxfp4 or fp8")
    for each in UNKNOWN_METHODS
]


@pytest.mark.parametrize(("quantization", "readable"), REFUSED, ids=str)
def test_another_method_layout_or_version_says_which_can_be_read(
    quantization: object, readable: str, container: Path, capsys: Capsys
) -> None:
    change_json(
        container / "config.json", lambda config: config | {"quantization_config": quantization}
    )
    for line in (["show", container], eval_line(container), quantize_line(container, "out")):
        said = refusal(capsys, 1, *line)
        assert "cannot be read by this version" in said
        assert f"expected quant_method {readable}" in said
        assert "with `crumb quantize`" in said


def test_the_layout_of_earlier_versions_is_refused_by_its_name(
    container: Path, capsys: Capsys
) -> None:
    old = {"quant_method": "crumb", "layout": "row-stream", "layout_version": 1}
    change_json(container / "config.json", lambda config: config | {"quantization_config": old})
    for line in (["show", container], eval_line(container), quantize_line(container, "out")):
        said = refusal(capsys, 1, *line)
        assert "the layout row-stream of earlier versions cannot be read by this version" in said
        assert "expected quant_method crumb, layout tile, layout_version 1" in said
        assert "Quantize the float checkpoint again" in said


def test_a_configuration_that_forgot_the_container_lacks_its_tensors(
    container: Path, capsys: Capsys
) -> None:
    def forget(config: Any) -> Any:
        del config["quantization_config"]
        return config

    change_json(container / "config.json", forget)
    said = refusal(capsys, 1, "show", container)
    assert "lacks a tensor" in said
    assert "model.embed_tokens.weight" in said


def test_a_truncated_container_is_refused(container: Path, capsys: Capsys) -> None:
    raw = (container / MODEL).read_bytes()
    for end in (0, 8, 5000, len(raw) // 2, len(raw) - 1):
        (container / MODEL).write_bytes(raw[:end])
        assert MODEL in refusal(capsys, 1, "show", container)


def drop_metadata(header: Header) -> None:
    del header["__metadata__"][QUERY]


def set_metadata(text: str) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header["__metadata__"][QUERY] = text

    return change


def rename(suffix: str, other: str) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header[f"{QUERY}.{other}"] = header.pop(f"{QUERY}.{suffix}")

    return change


def reshape(dtype: str, shape: list[int]) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        begin, end = header[f"{QUERY}.tiles"]["data_offsets"]
        header[f"{QUERY}.tiles"] = entry(dtype, shape, begin, end)

    return change


def also_plain(header: Header) -> None:
    end = max(known["data_offsets"][1] for name, known in header.items() if name[0] != "_")
    header[QUERY] = entry("F16", [0, 64], end, end)


# The query is 64 x 64 of int3-g32-variable: 4 tiles of 2 blocks of 32 + 16 + 192 bytes.
TILES, TILE_BYTES = 4, 480
TABLELESS = "a matrix with a table of its own does not say which"
UNREADABLE, UNSIZED, UNFIT = (
    "without a readable format",
    "without out_features and in_features",
    "does not follow from",
)
DAMAGES: dict[str, tuple[Callable[[Header], None], str]] = {
    "no metadata": (drop_metadata, UNREADABLE),
    "unknown format": (set_metadata("int9-g32-variable 64 64"), UNREADABLE),
    "hostile format": (set_metadata("x" * 9000 + " 64 64"), UNREADABLE),
    "sizes first": (set_metadata("64 64 int3-g32-variable"), UNREADABLE),
    "no sizes": (set_metadata("int3-g32-variable"), UNSIZED),
    "one size, as earlier versions wrote": (set_metadata("int3-g32-variable 64"), UNSIZED),
    "three sizes": (set_metadata("int3-g32-variable 64 64 64"), UNSIZED),
    "two spaces": (set_metadata("int3-g32-variable 64  64"), UNSIZED),
    "size of letters": (set_metadata("int3-g32-variable 64 abc"), UNSIZED),
    "size of other digits": (set_metadata("int3-g32-variable 64 ٦٤"), UNSIZED),
    "negative size": (set_metadata("int3-g32-variable -64 64"), UNSIZED),
    "huge size": (set_metadata("int3-g32-variable 64 99999999999999999999"), UNSIZED),
    "no table": (set_metadata("lut3-g32-fixed 64 64"), TABLELESS),
    "a short table": (set_metadata("lut3-g32-fixed 64 64 -127,0,127"), TABLELESS),
    "a table that falls": (set_metadata("lut2-g32-fixed 64 64 127,3,2,1"), TABLELESS),
    "a level twice": (set_metadata("lut2-g32-fixed 64 64 -127,3,3,127"), TABLELESS),
    "a level of no byte": (set_metadata("lut2-g32-fixed 64 64 -128,3,4,127"), TABLELESS),
    "a level too far": (set_metadata("super2-g32-fixed 64 64 -16,-4,5,15"), TABLELESS),
    "a table of letters": (set_metadata("lut2-g32-fixed 64 64 a,b,c,d"), TABLELESS),
    "two tables": (set_metadata("lut2-g32-fixed 64 64 -9,0,3,9 -9,0,3,9"), TABLELESS),
    "many rows": (set_metadata("int3-g32-variable 999999999 64"), UNFIT),
    "many columns": (set_metadata("int3-g32-variable 64 999999999"), UNFIT),
    "no columns": (set_metadata("int3-g32-variable 64 0"), "without columns"),
    "no rows": (set_metadata("int3-g32-variable 0 64"), UNFIT),
    "fewer rows of the same tiles": (set_metadata("int3-g32-variable 63 64"), "shape"),
    "fewer columns of the same tiles": (set_metadata("int3-g32-variable 64 63"), "shape"),
    "another width": (set_metadata("int3-g32-variable 64 128"), UNFIT),
    "another bit width": (set_metadata("int4-g32-variable 64 64"), "does not follow from int4"),
    "another group": (set_metadata("int3-g64-variable 64 64"), "does not follow from int3-g64"),
    "another zero": (set_metadata("int3-g32-fixed 64 64"), "does not follow from int3-g32-fixed"),
    "no tiles": (rename("tiles", "tile"), "lacks a tensor"),
    "arrays of earlier versions": (rename("tiles", "codes"), "lacks a tensor"),
    "tiles in one row": (reshape("U8", [1, TILES * TILE_BYTES]), UNFIT),
    "tiles as a vector": (reshape("U8", [TILES * TILE_BYTES]), UNFIT),
    "tiles the other way": (reshape("U8", [TILE_BYTES, TILES]), UNFIT),
    "tiles of signed bytes": (reshape("I8", [TILES, TILE_BYTES]), UNFIT),
    "tiles of halves": (reshape("F16", [TILES, TILE_BYTES // 2]), UNFIT),
    "also a plain matrix": (also_plain, "both packed and plain"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_packed_matrix_that_does_not_add_up_is_refused_by_name(
    damage: Callable[[Header], None], said: str, container: Path, capsys: Capsys
) -> None:
    change_header(container / MODEL, damage)
    line = refusal(capsys, 1, *eval_line(container))
    assert QUERY in line
    assert said in line
    assert len(line) < 600


def test_an_array_called_tiles_alone_is_no_matrix(container: Path, capsys: Capsys) -> None:
    """Its matrix would have an empty name, which metadata can describe."""

    def add(header: Header) -> None:
        end = max(known["data_offsets"][1] for name, known in header.items() if name[0] != "_")
        header["tiles"] = entry("U8", [0, TILE_BYTES], end, end)
        header["__metadata__"][""] = "int3-g32-variable 0 64"

    change_header(container / MODEL, add)
    said = crumb(capsys, *eval_line(container))
    assert said.code == 0
    assert "left aside (found tiles)" in said.err


def test_codes_and_zero_points_may_hold_any_bits_but_scales_not_nan(
    container: Path, capsys: Capsys
) -> None:
    """Every code and zero point decodes to something; a scale can be infinite or NaN."""
    raw = bytearray((container / MODEL).read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    begin, end = (start + place for place in header[f"{QUERY}.tiles"]["data_offsets"])
    blocks = range(begin, end, 32 + 16 + 192)
    for block in blocks:
        raw[block + 32 : block + 240] = b"\xff" * 208
    (container / MODEL).write_bytes(raw)
    succeed(capsys, *eval_line(container))
    for block in blocks:
        raw[block : block + 32] = b"\xff" * 32
    (container / MODEL).write_bytes(raw)
    assert "logits are not finite" in refusal(capsys, 1, *eval_line(container))


def test_a_quantized_model_is_no_source(container: Path, refused: Any) -> None:
    line = refused(2, container)
    assert "quantized already" in line
    assert "float checkpoint" in line


def test_a_model_without_manifest_still_runs_but_is_nobodys_output(
    container: Path, tiny: Path, capsys: Capsys
) -> None:
    (container / "manifest.json").unlink()
    succeed(capsys, *eval_line(container))
    shown = json.loads(succeed(capsys, "show", container, "--json"))
    assert shown["job"] is None
    assert {row["relative_error"] for row in shown["tensors"]} == {None}
    line = refusal(capsys, 1, *quantize_line(tiny, container, restart=True))
    assert "was not made by crumb" in line
    assert (container / MODEL).exists()


NO_MANIFESTS: dict[str, Any] = {
    "list": [],
    "tensors is a list": {"tensors": []},
    "a record is text": {"tensors": {QUERY: "int3"}},
    "an error is text": {"tensors": {QUERY: {"relative_error": "small"}}},
    "job is a number": {"job": 3},
    "job without solver": {"job": {"crumb": "0.1.0"}},
    "fallbacks of numbers": {"fallbacks": [1, 2]},
    "calibration is a list": {"job": {"solve": {"method": "a", "scales": "b"}, "calibration": []}},
}


@pytest.mark.parametrize("manifest", NO_MANIFESTS.values(), ids=NO_MANIFESTS.keys())
def test_a_manifest_of_other_types_is_refused_by_name(
    manifest: object, container: Path, capsys: Capsys
) -> None:
    (container / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json" in refusal(capsys, 1, "show", container)
    succeed(capsys, *eval_line(container))


def test_a_manifest_that_is_no_json_is_refused_and_its_directory_kept(
    container: Path, tiny: Path, capsys: Capsys
) -> None:
    (container / "manifest.json").write_text("{")
    assert "manifest.json" in refusal(capsys, 1, "show", container)
    line = refusal(capsys, 1, *quantize_line(tiny, container, restart=True))
    assert "manifest.json" in line
    assert (container / MODEL).exists()


def test_a_damaged_output_is_made_again_with_restart(
    tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    """Its manifest says the job is done, so only reading the weights can tell."""
    out = tmp_path / "out"
    succeed(capsys, *quantize_line(tiny, out))
    whole = (out / MODEL).read_bytes()
    (out / MODEL).write_bytes(whole[:1000])
    line = refusal(capsys, 1, *quantize_line(tiny, out))
    assert str(out / MODEL) in line
    succeed(capsys, *quantize_line(tiny, out, restart=True))
    assert (out / MODEL).read_bytes() == whole
