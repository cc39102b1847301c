"""The card of a model as Markdown: what to publish beside its weights.

In: the record of `crumb show`, the manifest. Out: a page: what it is, what was done, what it cost
by measurement, and how anyone checks that. Refuses nothing: what is not known is left out.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from crumb.cli.output import bytes_text

CHECK = """```
crumb eval {name} --reference pack
```
"""


def card_of(record: dict[str, Any], manifest: dict[str, Any]) -> str:
    """The page of a model."""
    name = record["name"]
    parts = [f"# {name}\n", _what(record)]
    job = record["job"]
    if job:
        parts.append(_how(job, manifest))
    parts.append(_formats(record))
    measured = manifest.get("measured")
    if isinstance(measured, dict):
        parts.append(_cost(name, measured))
    return "\n".join(parts)


def _what(record: dict[str, Any]) -> str:
    return (
        f"A {record['family']} model of {record['parameters'] / 1e6:.1f} million parameters, "
        f"{bytes_text(record['file_bytes'])}: {record['bits_per_weight']:.3f} bits per weight of "
        f"the whole file; its blocks: {record['format']}.\n"
    )


def _how(job: dict[str, Any], manifest: dict[str, Any]) -> str:
    lines = ["## How it was made", f"Quantized by crumb {job.get('crumb', '')}."]
    lines.append(f"Method {job['solve']['method']}, scales {job['solve']['scales']}.")
    calibration = job.get("calibration")
    if calibration:
        lines.append(
            f"Calibrated on {calibration['spec']}: {calibration['sequences']} sequences of "
            f"{calibration['length_tokens']} tokens, seed {calibration['seed']}."
        )
    if job.get("source_sha256"):
        lines.append(f"The float model has the hash `{job['source_sha256']}`.")
    for tensor in manifest.get("fallbacks", []):
        lines.append(f"Not as asked: {tensor}.")
    return "\n".join(lines) + "\n"


def _formats(record: dict[str, Any]) -> str:
    counts = Counter(tensor["format"] for tensor in record["tensors"])
    sizes: Counter[str] = Counter()
    for tensor in record["tensors"]:
        sizes[tensor["format"]] += tensor["bytes"]
    lines = ["## Formats", "| format | tensors | bytes |", "|---|---:|---:|"]
    lines += [f"| {name} | {counts[name]} | {size} |" for name, size in sizes.most_common()]
    return "\n".join(lines) + "\n"


def _cost(name: str, measured: dict[str, Any]) -> str:
    rows = (
        ("mean KL from the float model, nats", "kl", "{:.5f}"),
        ("its standard error", "kl_standard_error", "{:.5f}"),
        ("perplexity over the float model's", "perplexity_ratio", "{:.4f}"),
        ("same most likely token", "top1_agreement", "{:.2%}"),
        ("bits per byte of that text", "bits_per_byte", "{:.4f}"),
    )
    lines = ["## What it cost", f"| on {measured['text']} | |", "|---|---:|"]
    lines += [
        f"| {words} | {form.format(measured[key])} |"
        for words, key, form in rows
        if measured.get(key) is not None
    ]
    lines += ["", "The float model is not needed to check this: its reference pack is here.", ""]
    return "\n".join(lines) + CHECK.format(name=name)
