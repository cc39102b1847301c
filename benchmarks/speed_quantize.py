"""How long a quantization takes, ours against the published algorithm in PyTorch, side by side.

In: a float LLaMA checkpoint and settings. Out: JSON with the machine, Markdown tables: seconds,
ratios, and the H-weighted error of every method on the same H.
Every run has a process of its own; rounds alternate the methods (A B C D A B C D), and medians are
compared. Both sides calibrate on the same tokens, which is checked. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from layer_errors import Decoded, geometric_mean, layer_errors
from machine import describe_machine, one_line
from numpy.typing import NDArray
from published_gptq import PublishedSettings, quantize_model
from report import RESULTS, print_table, write_record
from stopwatch import Elapsed, Stopwatch

from crumb.calibrate.drawing import draw
from crumb.embedded import MODELS
from crumb.formats.catalog import ZeroKind, make_format
from crumb.formats.grid import GroupParameters, decode_reference
from crumb.machine.memory import peak_memory_bytes
from crumb.machine.processors import processors
from crumb.pipeline import Calibration, QuantizeRequest, quantize
from crumb.progress import Progress
from crumb.run.model import Model, open_model
from crumb.solve.problem import AS_PUBLISHED, SolveSettings
from crumb.texts.mixture import CalibrationTokens

CODES = "codes.npz"

QUIET = 0.05
"""Share of the processors that others may use before the times stop meaning much."""


@dataclass(frozen=True)
class Job:
    """What every method is asked to do."""

    model: str
    bits: int
    group_size: int  # 0: the whole row
    zero: ZeroKind
    calibration: Calibration

    def draw(self, model: Model) -> CalibrationTokens:
        """The calibration tokens, as crumb draws them."""
        return draw(model, self.calibration)


@dataclass(frozen=True)
class Run:
    """One timed run."""

    elapsed: Elapsed
    block_seconds: float  # the part between the first block's input and the last block's output
    peak_bytes: int  # of the process, imports and loading included
    tokens_sha256: str


def run_crumb(job: Job, settings: SolveSettings, out: Path) -> Run:
    """Time crumb.pipeline.quantize, from a checkpoint on disk to a directory on disk."""
    told: dict[str, float] = {}  # stage or tensor -> when it was last spoken of

    def listen(progress: Progress) -> None:
        told[progress.doing] = time.perf_counter()

    request = QuantizeRequest(
        model=job.model,
        out=out / "model",
        bits=job.bits,
        embedding=8,
        head=8,
        group_size=job.group_size,
        zero=job.zero,
        solve=settings,
        calibration=job.calibration,
    )
    stages = open_model(job.model).plan.stages
    watch = Stopwatch()
    result = quantize(request, listen)
    elapsed = watch.stop()
    in_blocks = told[stages[-2].name] - told[stages[0].name]
    return Run(
        elapsed, in_blocks, peak_memory_bytes(), result.manifest["job"]["calibration"]["sha256"]
    )


def run_published(job: Job, settings: PublishedSettings, out: Path) -> Run:
    """Time quantize_model, from a loaded float model and drawn tokens to codes in memory."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(processors())
    drawn = job.draw(open_model(job.model))
    model = LlamaForCausalLM.from_pretrained(job.model, dtype=torch.float32).eval()
    tokens = torch.from_numpy(drawn.tokens)
    watch = Stopwatch()
    layers = quantize_model(model, tokens, settings)
    elapsed = watch.stop()
    arrays = {
        f"{name}:{field}": array.numpy()
        for name, layer in layers.items()
        for field, array in vars(layer).items()
    }
    np.savez(out / CODES, **arrays)
    return Run(elapsed, elapsed.seconds, peak_memory_bytes(), drawn.sha256())


def crumb_weights(out: Path, _: Job) -> Decoded:
    """What a quantized directory decodes to."""
    return open_model(str(out / "model")).checkpoint.tensors.read_float


def published_weights(out: Path, job: Job) -> Decoded:
    """What the codes of quantize_model decode to."""
    arrays = np.load(out / CODES)
    format = make_format(job.bits, job.group_size, job.zero)

    def decoded(name: str) -> NDArray[np.float32]:
        point = arrays[f"{name}:zero_point"] if job.zero is ZeroKind.VARIABLE else None
        parameters = GroupParameters(arrays[f"{name}:scale"], zero_point=point)
        return decode_reference(arrays[f"{name}:codes"], parameters, format)

    return decoded


@dataclass(frozen=True)
class Method:
    """One column of the comparison."""

    run: Callable[[Job, Any, Path], Run]
    weights: Callable[[Path, Job], Decoded]
    settings: Any
    peer: bool  # ours is divided by it


def make_methods(job: Job) -> dict[str, Method]:
    """Ours and the peers, by the name the tables show."""
    published = PublishedSettings(job.bits, job.group_size, job.zero is ZeroKind.VARIABLE)
    one_pass = replace(published, true_sequential=False)
    return {
        "crumb": Method(run_crumb, crumb_weights, SolveSettings(), False),
        "crumb as-published": Method(run_crumb, crumb_weights, AS_PUBLISHED, False),
        "published": Method(run_published, published_weights, published, True),
        "published one-pass": Method(run_published, published_weights, one_pass, True),
    }


def time_rounds(
    methods: dict[str, Method], job: Job, rounds: int, scratch: Path
) -> dict[str, list[Run]]:
    """Every method once a round, each run in a fresh process; the last outputs stay."""
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    for number in range(1, rounds + 1):
        for name, method in methods.items():
            out = scratch / name
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                run = process.submit(method.run, job, method.settings, out).result()
            runs[name].append(run)
            took = run.elapsed
            print(f"round {number}: {name} {took.seconds:.2f} s, others {took.others:.2f}")
    hashes = {run.tokens_sha256 for each in runs.values() for run in each}
    if len(hashes) != 1:
        raise SystemExit("the methods did not calibrate on the same tokens")
    return runs


def measure_errors(
    methods: dict[str, Method], job: Job, scratch: Path
) -> dict[str, dict[str, float]]:
    """Relative error of every layer, by method."""
    model = open_model(job.model)
    sources = {name: method.weights(scratch / name, job) for name, method in methods.items()}
    return layer_errors(model, job.draw(model).tokens, sources)


def summarise(
    methods: dict[str, Method], runs: dict[str, list[Run]], errors: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Medians, and every ratio of a peer to one of ours: above 1, ours is faster or better."""
    table = {
        name: {
            "settings": asdict(method.settings),
            "median_seconds": median(run.elapsed.seconds for run in runs[name]),
            "median_block_seconds": median(run.block_seconds for run in runs[name]),
            "median_processor_seconds": median(run.elapsed.processor_seconds for run in runs[name]),
            "others": max(run.elapsed.others for run in runs[name]),
            "peak_bytes": max(run.peak_bytes for run in runs[name]),
            "runs": [asdict(run) for run in runs[name]],
            "relative_error": geometric_mean(list(errors[name].values())),
            "layers": errors[name],
        }
        for name, method in methods.items()
    }
    ratios = [
        {"ours": ours, "peer": peer} | compare(table[ours], table[peer])
        for ours in methods
        for peer in methods
        if methods[peer].peer and not methods[ours].peer
    ]
    return {"methods": table, "ratios": ratios}


def compare(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """A peer's figures over ours."""
    layers = [peer["layers"][name] / ours["layers"][name] for name in ours["layers"]]
    by_round = [
        other["elapsed"]["seconds"] / mine["elapsed"]["seconds"]
        for mine, other in zip(ours["runs"], peer["runs"], strict=True)
    ]
    medians = ("seconds", "block_seconds", "processor_seconds")
    return {word: peer[f"median_{word}"] / ours[f"median_{word}"] for word in medians} | {
        "seconds_by_round": by_round,
        "error": geometric_mean(layers),
        "error_by_layer_range": [min(layers), max(layers)],
    }


def print_summary(record: dict[str, Any]) -> None:
    """The record as two tables."""
    print(f"\n{one_line(record['machine'])}")
    job, tokens = record["job"], record["job"]["calibration"]
    print(
        f"{job['model']}, {job['bits']} bits, group size {job['group_size'] or 'row'}, "
        f"{job['zero']} zero; {tokens['sequences']} x {tokens['length_tokens']} tokens of "
        f"{tokens['spec']}, seed {tokens['seed']}; medians of {record['rounds']} rounds\n"
    )
    columns = ["method", "seconds", "in blocks", "processor", "others", "peak MB", "relative error"]
    rows = [
        [
            name,
            f"{each['median_seconds']:.2f}",
            f"{each['median_block_seconds']:.2f}",
            f"{each['median_processor_seconds']:.2f}",
            f"{each['others']:.2f}",
            f"{each['peak_bytes'] / 1e6:.0f}",
            f"{each['relative_error']:.5f}",
        ]
        for name, each in record["methods"].items()
    ]
    print_table(columns, rows)
    print("\nPeer over ours; above 1, ours is faster or has the smaller error.\n")
    columns = ["ours / peer", "time", "by round", "in blocks", "processor", "error", "by layer"]
    rows = [
        [
            f"{each['ours']} / {each['peer']}",
            f"{each['seconds']:.2f}",
            f"{min(each['seconds_by_round']):.2f} to {max(each['seconds_by_round']):.2f}",
            f"{each['block_seconds']:.2f}",
            f"{each['processor_seconds']:.2f}",
            f"{each['error']:.3f}",
            "{:.2f} to {:.2f}".format(*each["error_by_layer_range"]),
        ]
        for each in record["ratios"]
    ]
    print_table(columns, rows)
    busiest = max(each["others"] for each in record["methods"].values())
    if busiest > QUIET * record["machine"]["processors"]:
        print(
            f"\nNot a quiet machine: others used up to {busiest:.2f} processors during a run. "
            "Do not quote these times; --processors 1 suffers least."
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(MODELS["novella-7m"]), help="a LLaMA directory")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=128, help="0 is the whole row")
    parser.add_argument("--zero", default="variable", choices=["fixed", "variable"])
    parser.add_argument("--calibration", default="excerpt-calibration")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processors", type=int, help="use only so many (default: all)")
    parser.add_argument("--scratch", type=Path, help="where outputs lie for a while")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_quantize.json")
    return parser.parse_args()


def main() -> None:
    asked = parse_arguments()
    calibration = Calibration(asked.calibration, asked.sequences, asked.length, asked.seed)
    job = Job(asked.model, asked.bits, asked.group_size, ZeroKind(asked.zero), calibration)
    methods = make_methods(job)
    if asked.processors:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.processors])
    machine = describe_machine()  # before our own load
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
        runs = time_rounds(methods, job, asked.rounds, Path(scratch))
        errors = measure_errors(methods, job, Path(scratch))
    shown = asdict(job) | {"model": Path(job.model).name, "calibration": asdict(calibration)}
    record = {"machine": machine, "job": shown, "rounds": asked.rounds}
    record |= summarise(methods, runs, errors)
    write_record(asked.out, record)
    print_summary(record)


if __name__ == "__main__":
    main()
