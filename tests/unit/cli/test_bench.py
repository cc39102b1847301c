"""`crumb bench`: every combination is measured, and shares are what their parts make.

In: the embedded model, small sizes; the array of the bandwidth is small too, so figures mean
nothing here. Out: tables in all formats.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from statistics import median

import pytest
from command_line import crumb
from source_models import write_source_model

from crumb.checkpoints.opening import open_checkpoint
from crumb.embedded import MODELS
from crumb.run import speed
from crumb.run.step_work import work_of

Capsys = pytest.CaptureFixture[str]
QUICK = ["bench", "novella-7m", "--prefill", "1,20", "--decode", "2", "--sequences", "1,3"]


@pytest.fixture(autouse=True)
def small_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LEAST_ARRAY_BYTES", 1 << 20)


def test_every_combination_is_measured_with_its_limit_beside_it(capsys: Capsys) -> None:
    finished = crumb(capsys, *QUICK, "--threads", "1,2", "--repeat", "3", "--format", "json")
    assert finished.code == 0, finished.err
    record = json.loads(finished.out)
    kinds = [
        (row["threads"], row["kind"], row["prompt_tokens"], row["sequences"], row["decode_tokens"])
        for row in record["measurements"]
    ]
    assert kinds == [
        (threads, *rest)
        for threads in (1, 2)
        for rest in (
            ("prefill", 1, 0, 0),
            ("prefill", 20, 0, 0),
            ("decode", 0, 1, 2),
            ("decode", 0, 3, 6),
            ("mixed", 20, 1, 1),
            ("mixed", 20, 3, 3),
        )
    ]
    for row in record["measurements"]:
        assert len(row["seconds"]) == len(row["limits_per_second"]) == len(row["shares"]) == 3
        assert row["share"] == median(row["shares"])
        tokens = row["prompt_tokens"] + row["decode_tokens"]
        assert row["tokens_per_second"] == pytest.approx(tokens / median(row["seconds"]))
    decode = record["measurements"][2]
    read = 2 * record["weight_bytes_per_step"]
    parts = zip(decode["seconds"], decode["limits_per_second"], decode["shares"], strict=True)
    for seconds, limit, share in parts:
        assert share == pytest.approx(read / seconds / limit)
    assert record["memory"]["peak_memory_bytes"] > record["memory"]["weights_bytes"]
    assert record["array_bytes"] >= 2 * record["memory"]["weights_bytes"] - 4096


def test_the_work_of_a_step_is_that_of_its_linears() -> None:
    """Counted by hand from the configuration: the tied head is the embedding's matrix."""
    checkpoint = open_checkpoint(MODELS["novella-7m"])
    work = work_of(checkpoint)
    config = checkpoint.configuration
    hidden, inner, blocks = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
    )
    kept = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    block = 2 * hidden * hidden + 2 * hidden * kept + 3 * hidden * inner
    assert work.block_products == blocks * block
    assert work.head_products == hidden * config["vocab_size"]
    assert work.products(5, 2) == 5 * work.block_products + 2 * work.head_products
    assert work.weight_bytes == 2 * (work.block_products + work.head_products)  # float16


def test_an_encoder_reads_the_prompts_and_its_decoder_writes(
    tmp_path: Path, capsys: Capsys
) -> None:
    """Multiply-adds are counted by hand from the configuration."""
    folder = write_source_model(tmp_path / "t5", num_layers=3, num_decoder_layers=2)
    line = ["bench", str(folder), "--prefill", "5,40", "--decode", "2", "--sequences", "1,3"]
    finished = crumb(capsys, *line, "--threads", "1", "--repeat", "1", "--format", "json")
    assert finished.code == 0, finished.err
    record = json.loads(finished.out)
    kinds = [(row["kind"], row["prompt_tokens"]) for row in record["measurements"]]
    assert kinds == [("prefill", 5), ("prefill", 40), ("decode", 0), ("decode", 0)]
    assert record["read_before_decoding_tokens"] == 40
    checkpoint = open_checkpoint(folder)
    config = checkpoint.configuration
    hidden, wide = config["d_model"], config["num_heads"] * config["d_kv"]
    attention, mlp = 4 * hidden * wide, 3 * hidden * config["d_ff"]
    work = work_of(checkpoint)
    assert work.source_products == 3 * (attention + mlp) + 2 * 2 * hidden * wide
    assert work.block_products == 2 * (attention + 2 * hidden * wide + mlp)
    assert work.prompt_products(40) == 40 * work.source_products + work.products(1, 1)
    assert work.weight_bytes == 4 * work.products(1, 1)  # float32, the decoder's alone
    assert record["multiply_adds_per_source_token"] == work.source_products
    said = crumb(capsys, *line, "--threads", "1", "--repeat", "1")
    assert "decode: each sequence has read 40 tokens before." in said.out
    assert "the encoder reads so many tokens" in said.out


@pytest.mark.parametrize("form", ["md", "csv"])
def test_tables_have_a_line_for_each_measurement(form: str, capsys: Capsys) -> None:
    finished = crumb(capsys, *QUICK, "--threads", "1", "--repeat", "1", "--format", form)
    assert finished.code == 0, finished.err
    assert finished.err.startswith("needs ")
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(finished.out)))
        assert [row["kind"] for row in rows] == ["prefill"] * 2 + ["decode"] * 2 + ["mixed"] * 2
        assert all(float(row["tokens_per_second"]) > 0 for row in rows)
        return
    rows = [line for line in finished.out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 6
    assert len({line.count("|") for line in rows}) == 1


def test_prompts_beyond_the_models_positions_are_left_out(capsys: Capsys) -> None:
    line = ["bench", "novella-7m", "--prefill", "4,99999", "--decode", "1", "--sequences", "1"]
    finished = crumb(capsys, *line, "--threads", "1", "--repeat", "1", "--format", "json")
    assert finished.code == 0
    assert "longer prompts are left out" in finished.err
    prompts = {row["prompt_tokens"] for row in json.loads(finished.out)["measurements"]}
    assert prompts == {0, 4}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--prefill", "1;2"], "--prefill"),
        (["--sequences", "0"], "sequences"),
        (["--threads", ""], "--threads"),
        (["--repeat", "0"], "repeat"),
        (["--decode", "1,,2"], "--decode"),
    ],
)
def test_a_sweep_that_cannot_be_is_exit_2(options: list[str], named: str, capsys: Capsys) -> None:
    finished = crumb(capsys, "bench", "novella-7m", *options)
    assert finished.code == 2
    assert named in finished.err.splitlines()[-1]
