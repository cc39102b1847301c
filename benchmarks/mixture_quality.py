"""What 4 and 3 bits cost a mixture of experts, rounded and by GPTQ, and who was routed where.

In: novella-7m, made a mixture: 8 copies of each MLP with noise of 15 %, two for each token by a
random router. Out: a Markdown table of divergences from the float mixture, and the lines of
`crumb show` that say how many calibration tokens came to each expert and what was borrowed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import crumb
from crumb.checkpoints.opening import open_checkpoint
from crumb.embedded import MODELS

EXPERTS, USED, NOISE = 8, 2, 0.15
ROLES = {"gate": "w1", "up": "w3", "down": "w2"}


def mixture_of(source: Path, folder: Path) -> Path:
    """A Mixtral whose experts are noisy copies of a llama's MLPs."""
    checkpoint, rng = open_checkpoint(source), np.random.default_rng(0)
    settings = dict(checkpoint.configuration) | {"model_type": "mixtral", "sliding_window": None}
    settings |= {"num_local_experts": EXPERTS, "num_experts_per_tok": USED}
    settings |= {"architectures": ["MixtralForCausalLM"]}
    arrays: dict[str, NDArray[Any]] = {}
    for spec in checkpoint.plan.tensors():
        weights = checkpoint.tensors.read_float(spec.name)
        block, mlp, role = spec.name.partition(".mlp.")
        if not mlp:
            arrays[spec.name] = weights.astype(np.float16)
            continue
        name = f"{block}.block_sparse_moe.experts.{{}}.{ROLES[role.removesuffix('_proj.weight')]}"
        for expert in range(EXPERTS):
            noise = NOISE * weights.std() * rng.standard_normal(weights.shape)
            arrays[f"{name.format(expert)}.weight"] = (weights + noise).astype(np.float16)
    for block in range(settings["num_hidden_layers"]):
        router = rng.standard_normal((EXPERTS, settings["hidden_size"])).astype(np.float32)
        arrays[f"model.layers.{block}.block_sparse_moe.gate.weight"] = router
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    return folder


def main() -> None:
    """Print the table, then the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--windows", type=int, default=8, help="of the evaluation")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        float_model = mixture_of(MODELS["novella-7m"], Path(name) / "mixture")
        print("| bits | method | perplexity | KL, nats |\n|---:|---|---:|---:|")
        for bits in (4, 3):
            for method in ("round", "gptq"):
                out = Path(name) / f"{method}-{bits}"
                crumb.quantize(
                    str(float_model),
                    bits=bits,
                    group_size=64,
                    method=method,
                    calibration="excerpt-calibration",
                    sequences=asked.sequences,
                    length_tokens=asked.length,
                    out=str(out),
                )
                result = crumb.evaluate(
                    str(out),
                    reference=str(float_model),
                    text="excerpt-evaluation",
                    limit_windows=asked.windows,
                )
                assert result.divergence is not None
                kl = result.divergence.kl
                apart = "" if kl.standard_error is None else f" ± {kl.standard_error:.5f}"
                perplexity = f"{result.perplexity.value:.2f}"
                print(f"| {bits} | {method} | {perplexity} | {kl.value:.5f}{apart} |", flush=True)
        shown = subprocess.run(
            [sys.executable, "-m", "crumb", "show", str(Path(name) / "gptq-3")],
            capture_output=True,
            text=True,
            check=True,
        )
        print(shown.stdout)


if __name__ == "__main__":
    main()
