"""Native sources compiled outside the package: one object, or the kernels' check as a program.

In: a compiler, flags, the sets of an architecture. Out: paths of objects and of the program, kept
in a folder and made anew when a source, a header or a flag changes. Flags of each set come from
CMakeLists.txt, so what is tested is what is built. Raises CalledProcessError where it fails.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "native"
CHECK = ROOT / "tests/native/check"

SETS = {
    "x86_64": {
        "baseline": "isa_baseline.cpp",
        "avx2": "isa_avx2.cpp",
        "avx512": "isa_avx512.cpp",
        "amx": "isa_amx.cpp",
    },
    "aarch64": {
        "baseline": "isa_baseline.cpp",
        "neon-dotprod": "isa_neon_dotprod.cpp",
        "neon-i8mm": "isa_neon_i8mm.cpp",
    },
}
"""Sources of the instruction sets of an architecture, slowest first as dispatch lists them."""
DEFINITION = {"x86_64": "CRUMB_X86=1", "aarch64": "CRUMB_NEON=1"}
BESIDE_SETS = ("dispatch.cpp", "engine.cpp", "operation.cpp", "pool.cpp")
"""Other sources of native/ that the check calls."""

CMAKE = (ROOT / "CMakeLists.txt").read_text()


def shared_flags() -> list[str]:
    """Flags of every native source, as CMakeLists.txt gives them."""
    found = re.search(r"target_compile_options\(_native PRIVATE ([^)]*)\)", CMAKE)
    assert found
    return ["-std=c++20", *found[1].split()]


def set_flags(source: str) -> list[str]:
    """The flags that CMakeLists.txt gives one source beside the shared ones."""
    lists = dict(re.findall(r"set\((\w+) (-[^)]*)\)", CMAKE))
    pattern = rf'native/{re.escape(source)} PROPERTIES\s+COMPILE_OPTIONS\s+"([^"]*)"'
    found = re.search(pattern, CMAKE)
    text = found[1] if found else ""
    for name, value in lists.items():
        text = text.replace(f"${{{name}}}", ";".join(value.split()))
    return [flag for flag in text.split(";") if flag]


@dataclass(frozen=True)
class Builder:
    """A compiler with its flags, and the folder that keeps what it made."""

    compiler: str
    folder: Path
    flags: Sequence[str] = field(default_factory=list)

    def _run(self, *arguments: object) -> str:
        command = [self.compiler, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return done.stdout

    def _make(self, path: Path, *arguments: object) -> None:
        """A file that appears whole, whatever another process makes of it at the same time."""
        made = path.with_suffix(f".{os.getpid()}{path.suffix}")
        self._run(*arguments, "-o", made)
        made.replace(path)

    def sources_of(self, source: Path, flags: Sequence[str]) -> list[Path]:
        """The source and all headers of ours that it includes."""
        listed = self._run("-MM", *self.flags, *flags, source)
        return [Path(name) for name in listed.replace("\\\n", " ").split()[1:]]

    def compile(self, source: Path, flags: Sequence[str]) -> Path:
        """The object of a source, made unless the one that is there is of the same bytes."""
        key = hashlib.sha256(repr([self.compiler, self.flags, flags]).encode())
        for path in self.sources_of(source, flags):
            key.update(path.read_bytes())
        item = self.folder / f"{source.stem}.o"
        made_of = item.with_suffix(".key")
        if not item.exists() or not made_of.exists() or made_of.read_text() != key.hexdigest():
            made_of.unlink(missing_ok=True)
            self._make(item, *self.flags, *flags, "-c", source)
            made_of.write_text(key.hexdigest())
        return item

    def objects(self, sources: Mapping[Path, Sequence[str]]) -> list[Path]:
        """Objects of many sources with their flags, a source a processor."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            return list(workers.map(self.compile, sources, sources.values()))

    def check_program(
        self,
        architecture: str,
        sets: Sequence[str],
        ready: bool = False,
        more_flags: Mapping[str, Sequence[str]] | None = None,
    ) -> Path:
        """The kernels' check with all sets of an architecture, or with the baseline alone.

        ready: takes objects that CMake built, where no source is newer. more_flags: of sources by
        name, which are then compiled here.
        """
        more_flags = more_flags or {}
        define = [f"-D{DEFINITION[architecture]}"] if len(sets) > 1 else []
        ours = ["-std=c++20", "-ffp-contract=off", f"-I{NATIVE}", *define]
        sources = dict.fromkeys(sorted(CHECK.glob("*.cpp")), ours)
        sources |= {NATIVE / name: [*ours, *more_flags.get(name, ())] for name in BESIDE_SETS}
        sources |= dict.fromkeys(sorted(NATIVE.glob("operations/*.cpp")), ours)
        done = []
        for name in sets:
            source = NATIVE / SETS[architecture][name]
            flags = [*set_flags(source.name), "-ffp-contract=off", "-std=c++20", *define]
            flags += more_flags.get(source.name, ())
            take = ready and source.name not in more_flags
            built = self._built_by_cmake(source, flags) if take else None
            if built is not None:
                done.append(built)
            else:
                sources = {source: flags} | sources  # the longest first
        program = self.folder / "check"
        self._make(program, *self.flags, *self.objects(sources), *done, "-pthread")
        return program

    def _built_by_cmake(self, source: Path, flags: Sequence[str]) -> Path | None:
        """The newest object of the package's own build, unless a source is newer."""
        made = ROOT.glob(f"build/*/CMakeFiles/_native.dir/native/{source.name}.o")
        newest = max(made, key=lambda path: path.stat().st_mtime, default=None)
        needed = [ROOT / "CMakeLists.txt", *self.sources_of(source, flags)]
        if newest is None or newest.stat().st_mtime < max(p.stat().st_mtime for p in needed):
            return None
        return newest


def shared_symbols(source: str, architecture: str, compiler: str, nm: str, item: Path) -> list[str]:
    """What a source of native/ shares with other objects: its symbols that are not its own alone.

    Unoptimised, so that nothing shared can hide by being inlined; -w: GCC warns that the calling
    convention of wide vectors depends on the set, which is what the caller tests.
    """
    define = f"-D{DEFINITION[architecture]}"
    flags = ["-std=c++20", "-O0", "-w", define, *set_flags(source)]
    subprocess.run([compiler, *flags, "-c", NATIVE / source, "-o", item], check=True)
    listing = subprocess.run(
        [nm, "--demangle", "--defined-only", item], check=True, capture_output=True, text=True
    )
    symbols = [line.split(maxsplit=2)[1:] for line in listing.stdout.splitlines()]
    assert any("(anonymous namespace)::sweep" in name for _, name in symbols), "no kernels listed"
    # Lower case is local to the object; u, v and w are the exceptions, shared or weak. DW.ref is
    # where the C++ library's handler of exceptions lies: an address, no code.
    shared = [name for kind, name in symbols if kind.isupper() or kind in "uvw"]
    return [name for name in shared if not name.startswith("DW.ref.")]


def run_check(command: Sequence[object], sets: Sequence[str]) -> str:
    """Runs a check; asserts that it ran these sets and found no difference.

    Returns the digest of what the sets with fused multiply-adds computed.
    """
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-8000:]}"
    ran, digest, mismatches = done.stdout.splitlines()[-3:]
    assert ran == f"sets: {' '.join(sets)}"
    assert mismatches == "mismatches: 0"
    return digest
