"""``make pythons``: does a user's install work, on every Python of this machine?

For each Python from 3.10 on the project is built once and installed twice, as a user would without
``constraints.txt``: with the newest packages there are, and with the oldest that pyproject.toml
allows and that have wheels for that Python. In each of them ``mp-run`` looks at ten frames of the
sample clip. All must find the same poses.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "pythons"
CLIP = ROOT / "runtime" / "data" / "sample.mp4"
OLDEST = (3, 10)
RESOLUTIONS = ("highest", "lowest-direct")
# The slow ONNX form, a decoder or ONNX Runtime of another release: rounding, never another pose.
LIMIT_PX = 0.5


def found_pythons() -> dict[str, Path]:
    """Version such as "3.12" -> interpreter, of those on PATH and those that pyenv keeps."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    folders += sorted(kept.glob("*/bin")) if kept.is_dir() else []
    pythons: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("python3*")):
            version = python_version(path)
            if version is not None and version not in pythons:
                pythons[version] = path
    return dict(sorted(pythons.items(), key=lambda item: int(item[0].partition(".")[2])))


def python_version(path: Path) -> str | None:
    """Its version, as "3.12", when the project supports it and it can make environments."""
    code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    if not path.name.removeprefix("python3").removeprefix(".").isdigit() and path.name != "python3":
        return None  # python3-config and the like
    try:
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=20)
    except OSError:
        return None
    if done.returncode != 0:
        return None
    major, minor = (int(part) for part in done.stdout.split())
    return f"{major}.{minor}" if (major, minor) >= OLDEST else None


def run(*command: object) -> str:
    """Standard output of a command; SystemExit with all it said when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def built_wheel(python: Path, version: str) -> Path:
    """The project built by that Python."""
    folder = WORK / version
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder / "build")
    pip = (folder / "build" / "bin" / "python", "-m", "pip", "wheel", "--quiet", "--no-deps")
    run(*pip, "--wheel-dir", folder, ROOT)
    return next(folder.glob("mambapose-*.whl"))


def installed(python: Path, version: str, wheel: Path, resolution: str) -> Path:
    """The bin folder of a new environment with the wheel and what it needs; prints versions."""
    folder = WORK / version / resolution
    run(python, "-m", "venv", "--without-pip", folder)
    interpreter = folder / "bin" / "python"
    uv = (sys.executable, "-m", "uv", "pip")
    install = (*uv, "install", "--quiet", "--python", interpreter)
    # Sources of an old release may not compile here; the wheel of ours is built already.
    run(*install, "--resolution", resolution, "--only-binary", ":all:",
        "--extra", "cpu", "-r", ROOT / "pyproject.toml")  # fmt: skip
    run(*install, "--no-deps", wheel)
    listed = json.loads(run(*uv, "list", "--python", interpreter, "--format", "json"))
    names = ("av", "click", "numpy", "onnxruntime", "pillow")
    told = ", ".join(f"{row['name']} {row['version']}" for row in listed if row["name"] in names)
    print(f"Python {version}, {resolution}: {told}", flush=True)
    return folder / "bin"


def poses_of(binaries: Path) -> NDArray[np.float64]:
    """(10, 17, 2) px: the joints of the one person in ten frames."""
    out = binaries.parent / "out"
    run(binaries / "mp-run", CLIP, "--range", "0:10", "-o", out, "--overlay", "--overwrite")
    frames = json.loads((out / "poses.json").read_text())["frames"]
    people = [frame["people"] for frame in frames]
    if len(frames) != 10 or not all(len(row) == 1 for row in people):
        raise SystemExit(f"{binaries}: ten frames of one person were wanted, found {people}")
    return np.array([row[0]["xy"] for row in people], np.float64)


def main() -> None:
    """Build, install, run, compare; exits with 1 at the first difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--newest", action="store_true", help="only with the newest packages")
    asked = parser.parse_args()
    pythons = found_pythons()
    print(f"Pythons: {', '.join(pythons)}", flush=True)
    first: NDArray[np.float64] | None = None
    for version, python in pythons.items():
        wheel = built_wheel(python, version)
        for resolution in RESOLUTIONS[:1] if asked.newest else RESOLUTIONS:
            found = poses_of(installed(python, version, wheel, resolution))
            first = found if first is None else first
            error = float(np.abs(found - first).max())
            print(f"    ten frames, at most {error:.2g} px from the first", flush=True)
            if error > LIMIT_PX:
                raise SystemExit(f"Python {version}, {resolution}: other poses ({error:.2f} px)")
    print("all Pythons find the same poses")


if __name__ == "__main__":
    main()
