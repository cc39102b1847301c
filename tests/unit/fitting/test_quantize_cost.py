"""What a quantization will cost, said before it starts: bytes exactly, time and memory sensibly.

In: tiny checkpoints, formats, settings. Out: estimates that grow with the work, and byte counts
equal to what is written.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import make_tensors, write_checkpoint

from crumb.architectures.registry import plan_of
from crumb.calibrate.token_weights import GradientPass
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.workspace import Workspace
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import read_header
from crumb.embedded import MODELS
from crumb.fitting import quantize_cost
from crumb.fitting.gradient_cost import gradient_disk_bytes
from crumb.fitting.quantize_cost import (
    FIXED_BYTES,
    ROWS_AT_ONCE,
    estimate,
    lanes_bytes,
    measured_rate,
    output_bytes,
    packed_bytes,
    peak_bytes,
    total_work,
    working_bytes,
)
from crumb.formats.catalog import ROW, Format, ZeroKind, make_format
from crumb.formats.layouts.tile import TILE_ROWS
from crumb.pipeline import (
    Calibration,
    QuantizeRequest,
    choose_formats,
    quantize,
)
from crumb.progress import Progress
from crumb.solve.problem import Method, Scales, SolveSettings

ROUNDING = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)


def opened(folder: Path, **sizes: int) -> Checkpoint:
    tensors = make_tensors(**sizes)
    name = "-".join(f"{word}{size}" for word, size in sizes.items()) or "tiny"
    return open_checkpoint(write_checkpoint(folder / name, tensors))


def formats_of(checkpoint: Checkpoint, bits: int = 3) -> dict[str, Format]:
    request = QuantizeRequest(str(checkpoint.path), Path("out"), bits=bits, group_size=32)
    return choose_formats(checkpoint.plan, request)


@pytest.mark.parametrize(
    ("bits", "group_size", "zero"),
    [*itertools.product((2, 3, 8), (32, ROW), ZeroKind), (5, 64, ZeroKind.MINIMUM)],
)
def test_output_bytes_are_exactly_those_written(
    bits: int, group_size: int, zero: ZeroKind, tmp_path: Path
) -> None:
    """An own head of other bits, and a width of 96 that groups of 64 do not divide."""
    model = write_checkpoint(tmp_path / "model", make_tensors(tied=False))
    request = QuantizeRequest(
        str(model),
        tmp_path / "out",
        bits=bits,
        group_size=group_size,
        zero=zero,
        head=6,
        solve=ROUNDING,
    )
    quantize(request)
    arrays, _ = read_header(tmp_path / "out" / "model.safetensors")
    written = sum(array.size_bytes for array in arrays.values())
    checkpoint = open_checkpoint(model)
    assert output_bytes(checkpoint, choose_formats(checkpoint.plan, request)) == written


def test_working_bytes_are_those_on_the_disk_before_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices lie there twice, everything else once; headers and JSON come on top."""
    model = write_checkpoint(tmp_path / "model")
    seen: list[int] = []

    def look(workspace: Workspace) -> None:
        files = workspace.partial.rglob("*.safetensors")
        sizes = [read_header(path)[0].values() for path in files]
        seen.append(sum(array.size_bytes for arrays in sizes for array in arrays))

    monkeypatch.setattr(Workspace, "publish", look)
    request = QuantizeRequest(str(model), tmp_path / "out", bits=4, group_size=32, solve=ROUNDING)
    with pytest.raises(Exception, match="no such model directory"):
        quantize(request)
    checkpoint = open_checkpoint(model)
    formats = choose_formats(checkpoint.plan, request)
    assert seen == [working_bytes(checkpoint, formats, (0, 1), ROUNDING)]


def test_the_pass_that_weighs_tokens_needs_the_disk_that_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of it lies there when the way back begins: what flows into each stage."""
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model"))
    tokens = np.arange(40 * 64).reshape(40, 64) % 50
    seen: list[int] = []
    back = GradientPass._back

    def look(self: GradientPass, index: int) -> None:
        back(self, index)
        seen.append(sum(path.stat().st_size for path in self.folder.iterdir()))

    monkeypatch.setattr(GradientPass, "_back", look)
    GradientPass(checkpoint, tokens, tmp_path / "pass").run(0.5)
    announced = gradient_disk_bytes(checkpoint.plan, (40, 64))
    headers = 128 * 3 * len(checkpoint.plan.stages)
    assert max(seen) <= announced + headers
    assert announced < 1.5 * max(seen)


def test_the_rows_that_are_solved_together_are_whole_tiles() -> None:
    """Matrices of more rows are stacked from parts, and only the last part of one may be ragged."""
    assert ROWS_AT_ONCE % TILE_ROWS == 0


def test_packed_bytes_leave_out_what_is_no_matrix(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    formats = formats_of(checkpoint)
    norms = 7 * 64 * 2
    assert output_bytes(checkpoint, formats) == packed_bytes(checkpoint.plan, formats) + norms
    assert packed_bytes(checkpoint.plan, {}) == 0


GROWING = [
    ({}, {"blocks": 6}),
    ({}, {"hidden": 128}),
    ({}, {"feed_forward": 512}),
]


@pytest.mark.parametrize(("small", "large"), GROWING, ids=str)
@pytest.mark.parametrize("method", Method)
def test_estimates_are_positive_and_grow_with_the_model(
    small: dict[str, int],
    large: dict[str, int],
    method: Method,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantize_cost, "measured_rate", lambda: 1e9)
    settings = SolveSettings(method=method)
    first, second = (
        estimate(checkpoint, formats_of(checkpoint), (64, 128), settings)
        for checkpoint in (opened(tmp_path, **small), opened(tmp_path, **large))
    )
    assert first.seconds > 0
    assert 0 < first.output_bytes < first.working_bytes
    assert second.seconds > first.seconds
    assert second.output_bytes > first.output_bytes
    assert second.working_bytes >= first.working_bytes  # what weighs the tokens may be the most
    # One block is held at a time, so depth alone costs no memory.
    assert second.memory_bytes >= first.memory_bytes
    if method is Method.GPTQ:
        assert (second.memory_bytes == first.memory_bytes) == ("blocks" in large)


def test_more_tokens_cost_time_and_memory_where_there_is_calibration(tmp_path: Path) -> None:
    plan = opened(tmp_path).plan
    formats = formats_of(opened(tmp_path))
    gptq = SolveSettings()
    assert total_work(plan, formats, (128, 64), gptq) > total_work(plan, formats, (64, 64), gptq)
    assert peak_bytes(plan, {}, (128, 64), gptq) > peak_bytes(plan, {}, (64, 64), gptq)
    assert total_work(plan, formats, (0, 1), ROUNDING) < total_work(plan, formats, (64, 64), gptq)


def test_longer_sequences_of_the_same_tokens_cost_more_attention(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    works = [
        total_work(checkpoint.plan, formats_of(checkpoint), tokens, SolveSettings())
        for tokens in ((256, 32), (32, 256))
    ]
    assert works[0] < works[1]


def test_searching_scales_costs_more_than_their_extremes(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    formats = formats_of(checkpoint)
    search = SolveSettings(method=Method.ROUND, scales=Scales.SEARCH)
    assert total_work(checkpoint.plan, formats, (0, 1), search) > total_work(
        checkpoint.plan, formats, (0, 1), ROUNDING
    )


def test_the_rate_of_this_machine_is_believable() -> None:
    """Between a slow emulator and the fastest processor there is."""
    assert 1e8 < measured_rate() < 1e14


@pytest.mark.parametrize("method", Method)
def test_reported_progress_rises_to_the_estimated_work(method: Method, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    steps: list[Progress] = []
    request = QuantizeRequest(
        str(model),
        tmp_path / "out",
        bits=3,
        group_size=32,
        solve=SolveSettings(method=method),
        calibration=Calibration("excerpt-calibration", sequences=2, length_tokens=32),
    )
    quantize(request, progress=steps.append)
    shares = [step.share for step in steps]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, rel=0.02)
    assert {step.doing for step in steps} >= set(make_tensors()) - {
        name for name in make_tensors() if "norm" in name
    }


def test_the_float_model_beside_counts_with_what_flows_and_its_engines(tmp_path: Path) -> None:
    plan, shape = open_checkpoint(write_checkpoint(tmp_path / "model")).plan, (1024, 256)
    beside = peak_bytes(plan, {}, shape, SolveSettings(token_power=0.0))
    widest, hidden = 96, 64
    block = 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
    flowing = 4 * 1024 * 256 * (widest + hidden)
    assert beside == FIXED_BYTES + block + 2 * (flowing + lanes_bytes(plan, 1, shape))


def test_a_tied_head_is_not_counted_twice(tmp_path: Path) -> None:
    tied = open_checkpoint(write_checkpoint(tmp_path / "tied"))
    own = open_checkpoint(write_checkpoint(tmp_path / "own", make_tensors(tied=False)))
    head = 304 * make_format(5, 32, ZeroKind.FIXED).row_bits(64) // 8  # 300 rows are 19 tiles
    difference = output_bytes(own, formats_of(own)) - output_bytes(tied, formats_of(tied))
    assert difference == head


def test_seven_billion_parameters_at_three_bits_fit_where_they_should() -> None:
    """The known sizes of LLaMA-7B: 6.61 G weights in blocks, 2 x 131 M in embedding and head."""
    llama = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    plan = plan_of(llama)
    formats = choose_formats(plan, QuantizeRequest("llama", Path("out"), bits=3))
    in_blocks = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    bits = in_blocks * (3 + 16 / 128) + 2 * 32000 * 4096 * (5 + 16 / 128)
    assert packed_bytes(plan, formats) == bits / 8
    few, many = (peak_bytes(plan, {}, (each, 512), SolveSettings()) for each in (64, 512))
    block_bytes = 4 * in_blocks / 32
    assert block_bytes < few < 7.2e9  # not the 27 GB of the whole model
    assert many > few


@pytest.mark.oracle
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_the_announced_memory_covers_the_measured_peak(tmp_path: Path) -> None:
    """Slow, hence among the oracle's tests: a process of its own quantizes the embedded model."""
    # Not getrusage: its maximum begins with the memory of the process that started this one.
    program = (
        "import re, sys; from crumb.cli.main import main; code = main(sys.argv[1:]); "
        "status = open('/proc/self/status').read(); "
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]); sys.exit(code)"
    )
    calibration = ["--calibration", "excerpt-calibration", "--sequences", "32"]
    line = ["quantize", MODELS["novella-7m"], "--bits", "3", "--out", tmp_path / "out"]
    finished = subprocess.run(
        [sys.executable, "-c", program, *map(str, line), *calibration],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = 1024 * int(finished.stdout.splitlines()[-1])
    checkpoint = open_checkpoint(MODELS["novella-7m"])
    announced = peak_bytes(checkpoint.plan, {}, (32, 512), SolveSettings())
    print(f"announced {announced / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert measured < announced
    assert announced < 2 * measured
