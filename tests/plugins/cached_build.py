"""What tests compile, kept in build/tests under a hash of all that went in.

An object is compiled again when its source, a header it includes, a flag or the compiler changes,
and not otherwise; equal sources in two folders share one object, so a copy of the kernels with one
patched file costs the compilation of that file. Several processes may want the same thing at once
(pytest-xdist): a lock lets one of them make it, and a rename shows it to the others complete.

What a program said is kept too (`kept_run`) where it says the same whenever it runs: those with
seeded inputs and no clock. Removing build/tests makes everything anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "plugins" / "csrc"
FOLDER = ROOT / "build" / "tests"
INCLUDE = re.compile(rb'^\s*#\s*include\s*["<]([^">]+)[">]', re.MULTILINE)
DAYS_KEPT = 30
RUN_SECONDS = 1800


class BuildError(AssertionError):
    """The compiler's complaint."""


@dataclass(frozen=True)
class Compiler:
    """A compiler and its flags.

    includes: folders of -I, patched copies first; system: -isystem; silent: a warning is an error,
    for compilers without a flag for that.
    """

    flags: tuple[str, ...]
    includes: tuple[Path, ...] = (CSRC,)
    system: tuple[Path, ...] = ()
    program: str = field(default_factory=lambda: os.environ.get("CXX", "g++"))
    silent: bool = False

    def objects(
        self, sources: Iterable[Path], own: Mapping[str, Sequence[str]] | None = None
    ) -> list[Path]:
        """The object of each source, compiled side by side; own: more flags, by the source's stem.

        Raises BuildError.
        """

        def compiled(source: Path) -> Path:
            return self.object(source, *(own or {}).get(source.stem, ()))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compiled, sources))

    def overlaid(self, sources: Iterable[Path]) -> list[Path]:
        """Sources of csrc, each in the first of our folders that has it."""
        names = [source.relative_to(CSRC) for source in sources]
        return [next(f / name for f in self.includes if (f / name).is_file()) for name in names]

    def object(self, source: Path, *flags: str) -> Path:
        """The object of one source. Raises BuildError."""
        texts = self._texts(source)
        digest = self._digest(*self.flags, *flags)
        for name in sorted(texts):
            digest.update(name.encode() + b"\0" + texts[name] + b"\0")
        folders = [f"-I{path}" for path in self.includes]
        for path in self.system:  # nvcc wants two words
            folders += ["-isystem", str(path)]
        is_cuda = source.suffix == ".cu" and "nvcc" not in Path(self.program).name
        language = ["-x", "c++"] if is_cuda else []
        command = [self.program, *self.flags, *folders, *flags, *language, "-c", str(source)]
        return _made(f"{source.stem}-{digest.hexdigest()[:20]}.o", self._runner(command))

    def link(self, name: str, objects: Iterable[Path], *flags: str) -> Path:
        """Objects of this class, and libraries given by flags, linked into a file of this name, to
        which the hash is added before the suffix. Raises BuildError.
        """
        inputs = [*map(str, objects), *flags]
        key = self._digest(*self.flags, *inputs).hexdigest()[:20]
        target = Path(name)
        command = [self.program, *self.flags, *inputs]
        return _made(f"{target.stem}-{key}{target.suffix}", self._runner(command))

    def build(self, name: str, sources: Iterable[Path], *flags: str) -> Path:
        """Sources compiled and linked; the further flags are the linker's."""
        return self.link(name, self.objects(sources), *flags)

    def _runner(self, command: list[str]) -> Callable[[Path], None]:
        def run(target: Path) -> None:
            done = subprocess.run(
                [*command, "-o", str(target)], capture_output=True, text=True, check=False
            )
            if done.returncode != 0 or (self.silent and done.stderr.strip()):
                raise BuildError(done.stderr[-8000:])

        return run

    def _digest(self, *words: str) -> hashlib._Hash:
        return hashlib.sha256("\0".join((_version(self.program), *words)).encode())

    def _texts(self, source: Path) -> dict[str, bytes]:
        """The source and every header it includes, by the name it is included by; headers that are
        in none of our folders are the system's, which the compiler's version stands for.
        """
        folders = (*self.includes, *self.system)
        found = {source.name: source.read_bytes()}
        pending = [(found[source.name], source.parent)]
        while pending:
            text, beside = pending.pop()
            for name in (match.decode() for match in INCLUDE.findall(text)):
                paths = [folder / name for folder in (beside, *folders)]
                path = next((path for path in paths if path.is_file()), None)
                if path is not None and name not in found:
                    found[name] = path.read_bytes()
                    pending.append((found[name], path.parent))
        return found


def kept_run(
    program: Path, *arguments: str, wrapper: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """What a program of `Compiler` did, run once on a processor of this kind.

    wrapper: an emulator and its options. A verdict of an earlier run is printed as such. What went
    in: the program and arguments, whose names hold hashes, the environment and the processor.
    """
    shown = {k: v for k, v in os.environ.items() if k.startswith("MAMBAPOSE_") or "SAN_" in k}
    shown.update(environment)
    command = [*wrapper, str(program), *arguments]
    words = [*command, *(_version(name) for name in wrapper[:1]), _processor()]
    words += [f"{name}={value}" for name, value in sorted(shown.items())]
    key = hashlib.sha256("\0".join(words).encode()).hexdigest()[:20]

    def run(target: Path) -> None:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True,
            errors="replace", timeout=RUN_SECONDS, check=False,
        )  # fmt: skip
        target.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))

    name = f"{program.name}-{key}.said"
    known = (FOLDER / name).is_file()
    code, out, err = json.loads(_made(name, run).read_text())
    if known:
        print(f"kept verdict of an earlier run, {FOLDER / name}: {' '.join(command)}")
    return subprocess.CompletedProcess(command, code, out, err)


def need_sanitizer(*flags: str) -> None:
    """Skip the test when the compiler lacks the sanitizer or this machine cannot run it."""
    with contextlib.suppress(BuildError):
        source = FOLDER / "probe.cpp"
        FOLDER.mkdir(parents=True, exist_ok=True)
        if not source.is_file():
            part = source.with_suffix(f".{os.getpid()}")
            part.write_text("int main() {}\n")
            part.replace(source)
        if kept_run(Compiler(flags).build("probe", [source])).returncode == 0:
            return
    pytest.skip(f"the compiler cannot build or this machine cannot run {' '.join(flags)}")


@functools.cache
def _processor() -> str:
    """What decides which instructions a program finds: architecture and the kernel's flags."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()} {line}"
    return f"{platform.machine()} {platform.processor()}"


@functools.cache
def _version(program: str) -> str:
    """Path and version of a compiler; skips the test without one."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"no C++ compiler ({program})")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    return f"{os.path.realpath(path)} {done.stdout}"


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """The file of this name, made unless it is there."""
    path = FOLDER / name
    if not path.is_file():
        with locked(name):
            if not path.is_file():
                part = FOLDER / f"part-{os.getpid()}-{name}"
                make(part)
                part.replace(path)
                _forget_old()
    os.utime(path)
    return path


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process or thread at a time; names share 256 locks, so that the folder stays small."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    number = hashlib.sha256(name.encode()).hexdigest()[:2]
    with (FOLDER / f".lock-{number}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_old() -> None:
    """Unlink what no test asked for in the last days."""
    oldest = time.time() - DAYS_KEPT * 86400
    for path in FOLDER.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest and not path.name.startswith(".lock"):
                path.unlink()
