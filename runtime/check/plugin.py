"""The TensorRT plugin: compiled and driven where CUDA is, otherwise reported as not proved.

The driver is the program that the tests use: it loads the plugin as TensorRT does, takes it through
build, serialisation and execution on the GPU, and compares every output with an oracle of its own.
TensorRT itself is not part of this: what its builder does with the plugin is not proved here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mambapose.runtime.backends.native import installed_folders
from mambapose.runtime.check.finding import Finding
from mambapose.runtime.errors import EngineError

DEVICES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvhost-ctrl-gpu", "/dev/nvgpu", "/dev/nvmap")
# Far above what a slow board takes, so that only what hangs is ended; the values are free.
BUILD_SECONDS = 1800
DRIVE_SECONDS = 600
DRIVER = "trt_driver"
LIBRARY = "libmambapose_trt.so"
UNPROVED = "no engine was built: TensorRT's own builder and runtime were not part of this"


def plugin_findings(force: bool = False) -> Iterator[Finding]:
    """What was proved about the plugin on this machine, one line for each step.

    force: compile even where there is no NVIDIA device; that takes minutes and runs nothing.
    """
    compiler, device = find_compiler(), find_device()
    if compiler is None:
        ok = False if force else None
        yield Finding(
            "plugin",
            "no nvcc on PATH or in /usr/local/cuda/bin: the TensorRT plugin was neither compiled "
            "nor run; install the CUDA toolkit (JetPack: cuda-toolkit)",
            ok,
        )
        return
    if device is None and not force:
        yield Finding(
            "plugin",
            f"{compiler}, no NVIDIA device: the TensorRT plugin was neither compiled nor run; "
            "mp-check --plugin compiles it anyway",
        )
        return
    try:
        folder = plugin_folder(compiler)
        if not is_built(folder, with_driver=device is not None):
            yield Finding("plugin", f"compiling with {compiler}; this takes minutes, once")
            build_plugin(compiler, folder, with_driver=device is not None)
        yield Finding("plugin", f"compiled: {_built_with(folder)}; {folder / LIBRARY}", True)
        if device is None:
            yield Finding("plugin", f"not run: no NVIDIA device; {UNPROVED}")
            return
        yield Finding("plugin", f"driven on {device}: {drive_plugin(folder)}", True)
        yield Finding("plugin", UNPROVED)
    except EngineError as err:
        yield Finding("plugin", str(err), False)


def find_compiler() -> Path | None:
    """The path of nvcc, looked for as plugins/cmake does; None when there is none.

    When CUDACXX is set only that is tried; else PATH, CUDA_HOME, CUDA_PATH and the place where
    JetPack installs it.
    """
    named = os.environ.get("CUDACXX")
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    usual = ["nvcc", *(f"{home}/bin/nvcc" for home in homes if home)]
    found = next(filter(None, map(shutil.which, [named] if named else usual)), None)
    return None if found is None else Path(found)


def find_device() -> str | None:
    """The device file of an NVIDIA GPU, or None."""
    return next((path for path in DEVICES if os.path.exists(path)), None)


def source_folder() -> Path:
    """Where the installed package keeps the plugin's sources. Raises EngineError without them."""
    for folder in installed_folders():
        if (folder / "cmake" / "build_plugin.sh").is_file():
            return folder
    raise EngineError(
        "the sources of the plugin were wanted in mambapose/plugins, found none; "
        "install mambapose again from its source"
    )


def plugin_folder(compiler: Path) -> Path:
    """Where the plugin built by this compiler is kept. Raises EngineError without sources."""
    return _cache_folder() / f"plugin-{_fingerprint(source_folder(), compiler)}"


def is_built(folder: Path, *, with_driver: bool) -> bool:
    """Whether an earlier check left the plugin, and the driver if wanted, in the folder."""
    wanted = (LIBRARY, DRIVER) if with_driver else (LIBRARY,)
    return all((folder / name).is_file() for name in wanted)


def build_plugin(compiler: Path, folder: Path, *, with_driver: bool) -> None:
    """Compile the plugin, and the driver if wanted, into the folder.

    When something is missing or does not compile, raises EngineError with the build's own message.
    """
    source = source_folder()
    environment = {**os.environ, "CUDACXX": str(compiler)}
    if with_driver:
        environment["PLUGIN_DRIVER"] = "1"
    done = _run(
        ["sh", str(source / "cmake" / "build_plugin.sh"), str(folder)], environment, BUILD_SECONDS
    )
    if done.returncode != 0:
        raise EngineError(_last_sentence(done))


def drive_plugin(folder: Path) -> str:
    """The summary that the driver prints after a run on the GPU.

    Raises EngineError that names the first complaint.
    """
    done = _run([str(folder / DRIVER), str(folder / LIBRARY)], dict(os.environ), DRIVE_SECONDS)
    lines = done.stdout.splitlines()
    if done.returncode != 0:
        said = [line for line in lines if line.startswith("complaint")] or lines[-1:] or ["nothing"]
        raise EngineError(
            f"the plugin was wanted to agree with the oracle, found {said[0]} "
            f"(exit status {done.returncode}); please report it with the whole output of "
            f"{folder / DRIVER} {folder / LIBRARY}"
        )
    return f"{lines[-1]}, as TensorRT would call it, against an oracle"


def _run(
    command: list[str], environment: dict[str, str], seconds: int
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise EngineError(
            f"{Path(command[-1]).name}: an end within {seconds} s was wanted, found it still "
            "running; stop other work on this machine and try again"
        ) from err
    except OSError as err:
        raise EngineError(
            f"{command[0]}: a program that starts was wanted, found {err.strerror}; "
            "install it and try again"
        ) from err


def _last_sentence(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
    return lines[-1].removeprefix("mambapose: ")


def _cache_folder() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "mambapose"


def _fingerprint(source: Path, compiler: Path) -> str:
    """A hash that changes with every source, the compiler and the build's environment variables."""
    digest = hashlib.sha256(os.fsencode(compiler.resolve()))
    for name in ("TENSORRT_ROOT", "CUDA_ARCHS", "PLUGIN_FLAGS"):
        digest.update(os.fsencode(f"{name}={os.environ.get(name, '')}\n"))
    for file in sorted((source / "csrc").rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(source).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _built_with(folder: Path) -> str:
    """What CMake reported about compiler, architectures and headers."""
    try:
        said = (folder / "configure.log").read_text()
    except OSError:
        return "by an earlier check"
    found = re.findall(r"^-- mambapose: (?:GPU kernels|TensorRT plugin) (.+)$", said, re.MULTILINE)
    return ", ".join(found) or "by an earlier check"
