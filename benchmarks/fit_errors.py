"""What `crumb fit` predicts, beside what is measured: memory and speed over families and settings.

In: directories or GGUF files; without them random models of some families are written and rounded.
Out: JSON with the machine, a Markdown table of each combination, and of the errors. One thread, in
processor seconds; every combination is a process. A context is filled by all its sequences; speeds
are those of half of it, and behind it. Memory may be measured beside other work (`--only memory`);
speed wants a quiet machine, for neighbours take of its caches and of its memory's bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np
from alone import measure_alone
from machine import describe_machine
from random_checkpoint import BF16, TOKENIZER_FILES, TOKENIZER_MODEL, random_tensor
from report import RESULTS, print_table, write_record

from crumb.architectures.registry import plan_of
from crumb.checkpoints.safetensors import ArrayToWrite, write_file

DECODED_STEPS = 16
"""The fastest counts, as in the probe: what neighbours take of a processor's caches does not."""

CONTEXTS, CACHES, SEQUENCES = (256, 640, 2048), ("f16", "int8", "f32"), (1, 3)
FORMATS = (None, (4, 64), (2, 32))
"""Floats, and (bits, group size)."""

PEAK_SHARE, PEAK_BYTES, SPEED_SHARE = 0.03, 64 << 20, 0.15
"""Errors that the project allows itself."""

SETTINGS = ("model", "context", "cache", "sequences")
COLUMNS = {
    "memory": ("peak MB", "planned over peak"),
    "prompt": ("prompt tokens/s", "predicted over measured"),
    "decode": ("tokens/s", "predicted over measured"),
}
"""Figures, and how the table calls each and its error."""

ROUNDS = {"memory": 1, "speed": 3}
"""Predicted and measured in turn, each in a process of its own; the middle ratio counts."""

ONLY = {"memory": ("memory",), "speed": ("prompt", "decode"), "all": tuple(COLUMNS)}

SIZES = {
    "architectures": ["x"],
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 128},
    "qwen2": {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 6},
    "qwen3": {"attention_bias": False, "use_sliding_window": False},
    "gemma2": {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 64,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 128,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 64,
        "sliding_window": 128,
        "rope_local_base_freq": 10000.0,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
    },
    "deepseek_v2": {
        "num_key_value_heads": 12,
        "kv_lora_rank": 256,
        "q_lora_rank": None,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 512,
        "first_k_dense_replace": 1,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 1024},
}


@dataclass(frozen=True)
class Combination:
    """One line of the table."""

    model: str
    context: int
    cache: str
    sequences: int


def write_random(path: Path, family: str) -> None:
    """A random model of a family, in bf16."""
    path.mkdir(parents=True)
    configuration = SIZES | FAMILIES[family] | {"model_type": family}
    plan = plan_of(configuration)
    arrays = {
        spec.name: ArrayToWrite(BF16, spec.shape, partial(random_tensor, spec, (0, number)))
        for number, spec in enumerate(plan.tensors())
    }
    write_file(path / "model.safetensors", arrays, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(configuration))
    for name in TOKENIZER_FILES:
        (path / name).write_bytes((TOKENIZER_MODEL / name).read_bytes())


def write_models(folder: Path) -> Iterator[str]:
    """Every family in every format."""
    from crumb import quantize

    for family in FAMILIES:
        source = folder / family / "bf16"
        if not source.exists():
            write_random(source, family)
        for format in FORMATS:
            if format is None:
                yield str(source)
                continue
            bits, group_size = format
            out = folder / family / f"int{bits}-g{group_size}"
            if not out.exists():
                widths = {"bits": bits, "group_size": group_size, "method": "round"}
                quantize(source, out=out, pack=False, **widths)
            yield str(out)


def combinations(models: list[str], each: int) -> Iterator[Combination]:
    """So many of every model, going round all settings."""
    settings = cycle(product(CONTEXTS, CACHES, SEQUENCES))
    for model in models:
        for context, cache, sequences in islice(settings, each):
            yield Combination(model, context, cache, sequences)
        next(settings)  # the next model begins elsewhere


def predicted(asked: Combination, speed: bool) -> dict[str, Any]:
    """What fit says of the file as it lies."""
    import crumb.cli.main  # noqa: F401
    from crumb.fitting import speed_probe
    from crumb.fitting.fit import fit
    from crumb.requests.fit_request import FitRequest

    speed_probe.CLOCK = time.process_time
    request = FitRequest(
        (asked.model,), 1 << 50, asked.context, asked.sequences, asked.cache, 1, speed
    )
    row = next(row for row in fit(request).models[0].rows if row.lies_here)
    return {
        "memory": row.memory_bytes,
        "prompt": row.prompt_tokens_per_second,
        "decode": row.decode_tokens_per_second,
    }


def measured_peak(asked: Combination) -> dict[str, Any]:
    """Of a process that fills the context of all sequences."""
    import crumb.cli.main  # noqa: F401
    from crumb import load
    from crumb.machine.memory import peak_memory_bytes

    settings = {"context_tokens": asked.context, "sequences": asked.sequences}
    with load(asked.model, cache=asked.cache, threads=1, **settings) as model:
        for number in range(asked.sequences):
            tokens = _tokens(asked.context - DECODED_STEPS, number)
            model.generate(tokens, max_tokens=DECODED_STEPS, ignore_end=True)
        return {"memory": peak_memory_bytes()}


def measured_speed(asked: Combination) -> dict[str, Any]:
    """Of the engine: prompts of half the context one by one, then steps of all sequences."""
    from crumb.checkpoints.opening import open_checkpoint
    from crumb.run.engine import Engine, StepPart
    from crumb.run.load import engine_settings
    from crumb.run.memory_plan import CacheKind

    checkpoint = open_checkpoint(Path(asked.model))
    settings = engine_settings(
        checkpoint.plan, asked.context, asked.sequences, CacheKind(asked.cache)
    )
    engine = Engine(checkpoint, _one_thread(settings))
    half, seconds = asked.context // 2, []
    sequences = []
    for number in range(asked.sequences):
        tokens = _tokens(half, number)
        sequences.append(engine.begin(tokens, reuse=False))
        if number == 0:  # pages of the file are touched
            _step(engine, [StepPart(sequences[0], tokens[:1])])
            tokens = tokens[1:]
        for again in (True, False):
            seconds.append(_prompt(engine, sequences[-1], tokens, settings.step_tokens))
            if again:
                engine.cut(sequences[-1], len(tokens))
    parts = [StepPart(sequence, (5,)) for sequence in sequences]
    steps = [_step(engine, parts) for _ in range(DECODED_STEPS)]
    return {"prompt": half / min(seconds), "decode": asked.sequences / min(steps)}


def _one_thread(settings: Any) -> Any:
    from dataclasses import replace

    return replace(settings, threads=1)


def _tokens(count: int, seed: int) -> tuple[int, ...]:
    drawn = np.random.default_rng(seed).integers(5, 4000, count)
    return tuple(int(token) for token in drawn)


def _prompt(engine: Any, sequence: Any, tokens: tuple[int, ...], step_tokens: int) -> float:
    """Seconds of reading it, chunk by chunk."""
    from crumb.run.engine import StepPart

    begins = range(0, len(tokens), step_tokens)
    return sum(_step(engine, [StepPart(sequence, tokens[at : at + step_tokens])]) for at in begins)


def _step(engine: Any, parts: list[Any]) -> float:
    begin = time.process_time()
    engine.run(parts)
    return time.process_time() - begin


PARTS = {
    "predicted-memory": partial(predicted, speed=False),
    "predicted-speed": partial(predicted, speed=True),
    "memory": measured_peak,
    "speed": measured_speed,
}


def measure(asked: Combination, parts: tuple[str, ...]) -> dict[str, Any]:
    """Predicted and measured, each in a process of its own."""
    words = (asked.model, asked.context, asked.cache, asked.sequences)
    said: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    for part in parts:
        rounds = [
            (
                measure_alone(__file__, f"predicted-{part}", *words),
                measure_alone(__file__, part, *words),
            )
            for _ in range(ROUNDS[part])
        ]
        for name in ONLY[part]:
            pairs = sorted(rounds, key=lambda pair: pair[0][name] / pair[1][name])
            said[name], measured[name] = (each[name] for each in pairs[len(pairs) // 2])
    return {
        **vars(asked),
        "model": "/".join(Path(asked.model).parts[-2:]),
        "predicted": said,
        "measured": measured,
    }


def ratio(record: dict[str, Any], name: str) -> float:
    """Predicted over measured."""
    return float(record["predicted"][name] / record["measured"][name])


def within(record: dict[str, Any], name: str) -> bool:
    """Whether an error is one that the project allows itself."""
    if name != "memory":
        return abs(ratio(record, name) - 1) <= SPEED_SHARE
    measured = record["measured"][name]
    allowed = max(PEAK_SHARE * measured, PEAK_BYTES)
    return bool(abs(record["predicted"][name] - measured) <= allowed)


def print_errors(records: list[dict[str, Any]], figures: tuple[str, ...]) -> None:
    """Every combination, then each figure's errors."""
    columns = [*SETTINGS, *(word for figure in figures for word in COLUMNS[figure])]
    print_table(columns, [_row(record, figures) for record in records])
    print()
    rows = []
    for name in figures:
        ratios = sorted(ratio(record, name) for record in records)
        good = sum(within(record, name) for record in records)
        spread = (ratios[0], statistics.median(ratios), ratios[-1])
        rows.append([name, *(f"{each:.3f}" for each in spread), f"{good} of {len(records)}"])
    print_table(["predicted over measured", "least", "median", "most", "within the goal"], rows)


def _row(record: dict[str, Any], figures: tuple[str, ...]) -> list[str]:
    cells = [str(record[name]) for name in SETTINGS]
    for figure in figures:
        value = record["measured"][figure] / (1e6 if figure == "memory" else 1)
        cells += [f"{value:.1f}", f"{ratio(record, figure):.3f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="beside the random ones")
    parser.add_argument("--each", type=int, default=3, help="combinations of each model")
    parser.add_argument("--only", choices=list(ONLY), default="all")
    parser.add_argument("--folder", type=Path, help="where the random models lie, and stay")
    parser.add_argument("--out", type=Path, default=RESULTS / "fit_errors.json")
    parser.add_argument("--alone", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        part, model, context, cache, sequences = asked.alone
        one = Combination(model, int(context), cache, int(sequences))
        print(json.dumps(PARTS[part](one)))
        return
    parts = ("memory", "speed") if asked.only == "all" else (asked.only,)
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        models = [*asked.models, *write_models(asked.folder or Path(scratch))]
        for combination in combinations(models, asked.each):
            records.append(measure(combination, parts))
            write_record(asked.out, {"machine": describe_machine(), "records": records})
    print_errors(records, ONLY[asked.only])


if __name__ == "__main__":
    main()
