"""`crumb demo`: what quantization costs, on the model inside this package.

In: nothing but this package. Out: a table of formats and methods with bytes, perplexity and
divergence, then text from the original and from a 3-bit model, side by side.
Calibrates on the first half of the embedded excerpt, with effort fast, evaluates on the second.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from crumb.cli.option_groups import ONE_WAY
from crumb.cli.output import (
    bytes_text,
    duration_text,
    log,
    print_json,
    print_table,
    progress_bar,
)
from crumb.evaluation.comparison import evaluate_models
from crumb.evaluation.report import Evaluation
from crumb.formats.catalog import ZeroKind, group_name
from crumb.pipeline import Calibration, QuantizeRequest, quantize
from crumb.progress import Progress, ProgressClock
from crumb.requests.generate_request import Sampling
from crumb.requests.quantize_options import EFFORTS, Effort
from crumb.run.language_model import LanguageModel
from crumb.run.memory_plan import EngineSettings
from crumb.run.model import Model, open_model
from crumb.solve.problem import Method, Scales, SolveSettings
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.texts.windows import cut_windows

MODEL = "novella-7m"
WINDOW_TOKENS, WINDOWS = 512, 10
CALIBRATION = Calibration("excerpt-calibration", sequences=12, length_tokens=512)

SOLVERS = {
    "round": SolveSettings(method=Method.ROUND, scales=Scales.MINMAX),
    "gptq": SolveSettings(**EFFORTS[Effort.FAST]),
}

PROMPT = "The old man looked at the sea and"
SPOKEN = ("gptq", 3, 128, ZeroKind.FIXED)
SAMPLING = Sampling(temperature=0.7, top_p=0.9, seed=7)
SPOKEN_TOKENS = 48


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    method: str
    bits: int
    group_size: int
    zero: ZeroKind

    @property
    def name(self) -> str:
        return f"{self.method}-int{self.bits}-{group_name(self.group_size)}-{self.zero.value}"


VARIANTS = [
    Variant(method, bits, group_size, zero)
    for bits in (4, 3, 2)
    for zero in (ZeroKind.FIXED, ZeroKind.VARIABLE)
    for group_size in (32, 128)
    for method in SOLVERS
]

EXPECTED_SECONDS = 100.0
EVALUATION_SHARE = 0.28
"""Share of the time that evaluation takes, for the bar."""


def demo(
    *,
    keep: Path | None = None,
    json: Annotated[bool, ONE_WAY] = False,
) -> None:
    """Quantize the embedded model to 4, 3 and 2 bits and show what each cost.

    Args:
        keep: directory for the quantized models; by default they are removed at the end.
        json: print the table as JSON.
    """
    log(
        f"{MODEL}: {len(VARIANTS)} variants, calibrated on {CALIBRATION.sequences} x "
        f"{CALIBRATION.length_tokens} tokens, effort fast, about 850 MB of memory and "
        f"{duration_text(EXPECTED_SECONDS)} on two cores"
    )
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crumb-demo-") as temporary, progress_bar() as bar:
        folder, clock = keep or Path(temporary), ProgressClock(bar)
        for index, variant in enumerate(VARIANTS):
            clock((1 - EVALUATION_SHARE) * index / len(VARIANTS), f"quantize {variant.name}")
            quantize_variant(variant, folder)
        reference = open_model(MODEL)
        models = [open_model(str(folder / variant.name)) for variant in VARIANTS]
        evaluations = evaluate_all(reference, models, clock)
        spoken = models[VARIANTS.index(Variant(*SPOKEN))]
        texts = [speak(reference), speak(spoken)]
    if json:
        print_json(
            {"models": [each.as_dict() for each in evaluations], "prompt": PROMPT, "texts": texts}
        )
        return
    print_comparison(evaluations)
    print_texts(texts)
    log(f"done in {duration_text(time.monotonic() - begin)}")


def quantize_variant(variant: Variant, folder: Path) -> None:
    """Quantize the embedded model one way."""
    request = QuantizeRequest(
        model=MODEL,
        out=folder / variant.name,
        bits=variant.bits,
        group_size=variant.group_size,
        zero=variant.zero,
        solve=SOLVERS[variant.method],
        calibration=CALIBRATION,
    )
    quantize(request)


def evaluate_all(reference: Model, models: list[Model], clock: ProgressClock) -> list[Evaluation]:
    """The reference and every model on the same windows."""
    windows = cut_windows(
        read_text("excerpt-evaluation", Use.EVALUATION),
        reference.tokenizer.encode,
        length=WINDOW_TOKENS,
        limit=WINDOWS,
    )

    def progress(of_evaluation: Progress) -> None:
        share = 1 - EVALUATION_SHARE + EVALUATION_SHARE * of_evaluation.share
        clock(share, f"evaluate, {of_evaluation.doing}")

    return evaluate_models(models, reference, windows, progress)


def speak(model: Model) -> str:
    """A few lines from a model."""
    settings = EngineSettings(context_tokens=WINDOW_TOKENS)
    with LanguageModel(model.checkpoint, settings) as loaded:
        spoken = loaded.generate(PROMPT, max_tokens=SPOKEN_TOKENS, sampling=SAMPLING)
    return PROMPT + spoken.text


def print_comparison(evaluations: list[Evaluation]) -> None:
    """The table: the float model, then one line for each variant."""
    first = evaluations[0]
    print(
        f"{MODEL} on {first.text}, protocol {first.protocol}, {first.windows} windows of "
        f"{first.window_tokens}; ± is one standard error"
    )
    columns = ["bits", "<zero", "group", "<method", "bytes", "bits per weight"]
    rows = [["16", "", "", "float", *size_cells(first), perplexity_cell(first), "", ""]]
    for variant, evaluation in zip(VARIANTS, evaluations[1:], strict=True):
        divergence = evaluation.divergence
        assert divergence is not None, "evaluated with a reference"
        error = divergence.kl.standard_error or 0.0
        rows.append(
            [
                str(variant.bits),
                variant.zero.value,
                str(variant.group_size),
                variant.method,
                *size_cells(evaluation),
                perplexity_cell(evaluation),
                f"{divergence.kl.value:.4f} ± {error:.4f}",
                f"{100 * divergence.top1_agreement.value:.1f} %",
            ]
        )
    print_table([*columns, "perplexity", "mean KL, nats", "top-1 agreement"], rows)


def size_cells(evaluation: Evaluation) -> list[str]:
    """Bytes and bits per weight."""
    return [bytes_text(evaluation.file_bytes), f"{evaluation.bits_per_weight:.3f}"]


def perplexity_cell(evaluation: Evaluation) -> str:
    """Perplexity to two decimals."""
    return f"{evaluation.perplexity.value:.2f}"


def print_texts(texts: list[str]) -> None:
    """Both texts, beside each other where the terminal is wide enough."""
    names = ["float", f"{SPOKEN[1]} bits, g{SPOKEN[2]}, {SPOKEN[0]}"]
    print_table([f"<{name}" for name in names], [[" ".join(text.split()) for text in texts]])
