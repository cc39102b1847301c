"""Damage containers for some minutes: run it with PYTHONPATH=tests and --minutes 5.

In: how long, and a seed. Out: how many damaged GGUF, safetensors, GPTQ and crumb files opened and
how many were refused; the bytes of one that raised anything but a CrumbError, took too long or too
much memory, in the folder given with --keep.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from byte_edits import KINDS, edited, read_all
from gguf_file import speaking_model, tiny_model, wide_model
from quantized_files import MODULE, gptq_arrays, random_grid, write_model
from scaled_files import write_eight, write_mlx
from tiny_checkpoint import make_tensors, write_checkpoint

from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import CrumbError
from crumb.tokenizer.tokenizer import load_tokenizer

SECONDS_FOR_ONE = 10
"""An honest file of this size takes a hundredth of a second."""

MEMORY_BYTES = 512 << 20
"""Above what the process has when it begins; the files are smaller than a megabyte."""


EDGES = (1, 5, 8, 16, 24, 31, 32, 40, 53, 62, 63, 64)
"""Powers of two near which numbers are tried."""


@dataclass(frozen=True)
class Target:
    """One file to damage, and the model it belongs to."""

    file: Path
    model: Path
    header_bytes: int  # most damage is done here

    @property
    def name(self) -> str:
        return f"{self.model.name}/{self.file.name}"


class TooSlow(Exception):
    """A read that takes longer than SECONDS_FOR_ONE."""


def gguf_targets(place: Path) -> Iterator[Target]:
    """Plain, with either tokenizer, and two quantized types."""
    files = {
        "plain": tiny_model(),
        "merged": speaking_model("gpt2"),
        "scored": speaking_model("llama"),
        "q8_0": wide_model(8, 34),
        "mxfp4": wide_model(39, 17),
    }
    for name, file in files.items():
        path = place / f"{name}.gguf"
        path.write_bytes(file.raw())
        yield Target(path, path, len(file.header()))


def directory_targets(place: Path) -> Iterator[Target]:
    """Float, GPTQ, FP8 and MLX directories: weights, configuration, index, tokenizer."""
    tensors = make_tensors(blocks=1)
    models = [
        write_checkpoint(place / "single", tensors),
        write_checkpoint(place / "sharded", tensors, shards=2),
    ]
    grid = random_grid(4, (64, 96), 32, symmetric=False)
    config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": False,
        "desc_act": False,
        "checkpoint_format": "gptq",
    }
    models.append(write_model(place / "gptq", {MODULE: gptq_arrays(grid)}, config))
    write_eight(
        place / "fp8",
        {"quant_method": "fp8", "weight_block_size": [48, 40]},
        "weight_scale_inv",
        (48, 40),
        np.float32,
    )
    write_mlx(place / "mlx", 4, 32)
    models += [place / "fp8", place / "mlx"]
    for model in models:
        for file in sorted(model.iterdir()):
            size = file.stat().st_size
            if size < 8:
                continue
            if file.suffix == ".safetensors":
                size = 8 + int.from_bytes(file.read_bytes()[:8], "little")
            yield Target(file, model, size)


def read_everything(model: Path) -> None:
    """Weights, and the tokenizer if there is one."""
    read_all(model)
    files = open_checkpoint(model).files
    if files.read("tokenizer.json") is not None:
        load_tokenizer(files).encode("abab b")


def damaged(generator: random.Random, raw: bytes, header_bytes: int) -> bytes:
    """A file with one to four changes, nine of ten within its header.

    Half of them keep the length: a flipped bit, or a number at the edge of what its type holds.
    """
    for _ in range(generator.choice((1, 1, 1, 2, 3, 4))):
        limit = header_bytes if generator.random() < 0.9 else len(raw)
        place = min(generator.randrange(max(limit, 1)), max(len(raw) - 8, 0))
        if generator.random() < 0.3:
            width = generator.choice((4, 8))
            number = (1 << generator.choice(EDGES)) + generator.randint(-2, 1)
            edge = (number % (1 << 8 * width)).to_bytes(width, "little")
            raw = raw[:place] + edge + raw[place + width :]
        else:
            kind = generator.choice(("flip", "flip", *KINDS))
            raw = edited(raw, [(kind, place, generator.randrange(256))])
    return raw


@contextmanager
def bounded() -> Iterator[None]:
    """A read that ends in time."""

    def stop(*_: object) -> None:
        raise TooSlow(f"more than {SECONDS_FOR_ONE} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS_FOR_ONE)
    try:
        yield
    finally:
        signal.alarm(0)


def bound_memory() -> None:
    """Let this process have so much more address space and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def fate(target: Target) -> str:
    """What came of one damaged file. Raises: whatever is no CrumbError."""
    try:
        with bounded():
            read_everything(target.model)
    except CrumbError as error:
        line = str(error)
        assert len(line.splitlines()) == 1, f"not one line: {line!r}"
        assert len(line) < 1500, f"a line of {len(line)}"
        return "refused"
    return "read"


def main() -> int:
    """Damage until the time is over. Exit 1 at the first failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    generator = random.Random(options.seed)
    fates: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        targets = [*gguf_targets(Path(folder)), *directory_targets(Path(folder))]
        for target in targets:
            read_everything(target.model)
        bound_memory()
        deadline = time.monotonic() + 60 * options.minutes
        while time.monotonic() < deadline:
            target = generator.choice(targets)
            raw = target.file.read_bytes()
            broken = damaged(generator, raw, target.header_bytes)
            target.file.write_bytes(broken)
            try:
                fates[target.name, fate(target)] += 1
            except BaseException:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / target.name.replace("/", "-")).write_bytes(broken)
                print(f"{target.name}, after {fates.total()} files:", file=sys.stderr)
                traceback.print_exc()
                return 1
            finally:
                target.file.write_bytes(raw)
    for (name, what), count in sorted(fates.items()):
        print(f"{count:8} {what:8} {name}")
    print(f"{fates.total():8} in {options.minutes:g} minutes, seed {options.seed}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
