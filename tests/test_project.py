"""The promises the repository makes about itself: arrows, lean imports, packages, words."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("runtime", "plugins", "export", "benchmarks", "train")
# Part -> parts it may import: runtime <- plugins <- export <- benchmarks <- train.
ARROWS = {
    "runtime": {"runtime"},
    "plugins": {"runtime", "plugins"},
    "export": {"runtime", "plugins", "export"},
    "benchmarks": {"runtime", "plugins", "export", "benchmarks"},
    "train": set(PARTS),
}
NOT_INSTALLED = ("train",)
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "cv2", "av", "matplotlib", "PIL")
COMMANDS = {
    "mp-export": "mambapose.export.cli",
    "mp-run": "mambapose.runtime.cli",
    "mp-bench": "mambapose.benchmarks.cli",
    "mp-check": "mambapose.runtime.check.cli",
}


def modules(part: str) -> list[Path]:
    return [path for path in sorted((ROOT / part).rglob("*.py")) if "__pycache__" not in path.parts]


def imported_names(path: Path) -> set[str]:
    """Every module named by an import statement anywhere in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("part", PARTS)
def test_imports_follow_the_arrows(part: str) -> None:
    for path in modules(part):
        for name in imported_names(path):
            if name.startswith("mambapose."):
                target = name.split(".")[1]
                assert target in ARROWS[part], f"{path.relative_to(ROOT)} imports {name}"


# The runtime's floors, from the nouns up: a module imports its own floor and those below it.
FLOORS = (
    ("errors", "text", "version", "options", "types", "skeleton", "timing", "progress", "commands",
     "interrupt", "edges", "durable", "folder_lock", "targets", "stages.gate_limits",
     "stages.table"),
    ("bundle", "video"),
    ("backends",),
    ("stages",),
    ("people",),
    ("run_options",),
    ("pipeline",),
    ("loading", "results"),
    ("recording",),
    ("running", "check"),
    ("api", "cli"),
    ("",),  # the package itself: the names of the public API
)  # fmt: skip


def floor_of(module: str) -> int:
    """The floor of a module of the runtime, named without ``mambapose.runtime.``."""
    for name in (module, module.partition(".")[0]):
        for floor, names in enumerate(FLOORS):
            if name in names:
                return floor
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


def imports_between(parts: tuple[str, ...]) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports anywhere, also inside functions."""
    every = {module_name(path): path for part in parts for path in modules(part)}
    found: dict[str, set[str]] = {}
    for name, path in every.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                whole = (f"{node.module}.{alias.name}" for alias in node.names)
                found[name] |= {one if one in every else node.module for one in whole} & set(every)
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & set(every)
    return found


def module_name(path: Path) -> str:
    """``mambapose.runtime.types`` of runtime/types.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("mambapose", *parts)).removesuffix(".__init__")


def test_nothing_in_the_runtime_is_imported_upward() -> None:
    prefix = "mambapose.runtime."
    for module, imported in imports_between(("runtime",)).items():
        own = module.removeprefix(prefix.rstrip(".")).removeprefix(".")
        for other in (name.removeprefix(prefix) for name in imported):
            assert floor_of(other) <= floor_of(own), f"{own} imports {other}, which stands above it"


def test_files_take_their_name_only_once_they_are_on_the_disk() -> None:
    """A rename is that of ``durable``, which syncs; staging syncs its whole folder first."""
    build_step = "plugins/cmake/onnxruntime_headers.py"  # runs before there is a package
    allowed = {"runtime/durable.py", "runtime/bundle/staging.py", build_step}
    for path in (path for part in PARTS for path in modules(part)):
        if str(path.relative_to(ROOT)) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value
            by_os = isinstance(owner, ast.Name) and owner.id in ("os", "shutil")
            moves = by_os and node.func.attr in ("replace", "rename", "renames", "move")
            # The replace of a string takes two arguments, that of dataclasses keywords.
            of_path = node.func.attr in ("replace", "rename") and len(node.args) == 1
            renames = moves or (of_path and not node.keywords)
            assert not renames, f"{path}:{node.lineno}"


def test_imports_make_no_circle() -> None:
    graph = imports_between(PARTS)
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module] - {module}):
                walk(other, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def test_runtime_never_names_torch_onnx_or_cv2() -> None:
    for path in modules("runtime"):
        roots = {name.split(".")[0] for name in imported_names(path)}
        assert not roots & {"torch", "onnx", "cv2"}, path


def test_runtime_modules_import_with_numpy_and_click_alone() -> None:
    names = [
        ".".join(("mambapose", *path.relative_to(ROOT).with_suffix("").parts))
        for path in modules("runtime")
        if path.name != "__init__.py"
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_needs_only_numpy_and_click_and_fits_a_screen(command: str) -> None:
    blocked = HEAVY
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        f"from {COMMANDS[command]} import main\n"
        f"sys.argv = [{command!r}, '--help']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 60
    assert "Example" in done.stdout


def test_help_of_mp_run_is_quick() -> None:
    """0.3 s is the goal; CPU time against bare Python, which neighbours on the machine spare."""

    def fastest(code: str) -> float:
        times = []
        for _ in range(3):
            before = os.times()
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            after = os.times()
            times.append(sum(after[2:4]) - sum(before[2:4]))
        return min(times)

    bare = fastest("import numpy, click")
    ours = fastest("from mambapose.runtime.cli import main; main(['--help'])")
    assert ours - bare < 0.2


@pytest.mark.skipif(tomllib is None, reason="tomllib came with Python 3.11")
def test_packages_table_lists_the_folders() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = table["tool"]["scikit-build"]["wheel"]["packages"]
    assert packages == {f"mambapose/{part}": part for part in PARTS if part not in NOT_INSTALLED}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(PARTS)
    assert not (ROOT / "mambapose").exists(), "a ./mambapose folder hides the installed package"


def tracked_files() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\n") if name and (ROOT / name).is_file()]


def test_the_picture_of_the_rooms_is_the_tree() -> None:
    """CONTRIBUTING shows every folder with code, and no other."""
    picture = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    shown = {line.split()[0].rstrip("/") for line in picture.splitlines() if line.strip()}
    rooms = {
        path.parent.relative_to(ROOT).as_posix()
        for path in tracked_files()
        if path.suffix in {".py", ".cpp", ".cu", ".h"}
    }
    rooms = {room for room in rooms if not room.startswith(("tests/", "plugins/csrc/tests/"))}
    assert shown == rooms - {"."}


def test_text_speaks_of_the_project_alone() -> None:
    words = re.compile(
        r"(?<![\w./])/work/|subagent|" + "|".join(f"{host}\\.org" for host in ("pypi", "debian"))
    )
    for path in tracked_files():
        if path.suffix in {".py", ".md", ".txt", ".h", ".cpp", ".cmake", ".toml", ".sh", ""}:
            text = path.read_text(errors="replace")
            found = None if path == Path(__file__) else words.search(text)
            assert found is None, f"{path.relative_to(ROOT)}: {found}"
            assert path.suffix != ".md" or "../shared" not in text, path


def test_files_stay_readable() -> None:
    for path in tracked_files():
        if path.suffix in {".py", ".cpp", ".h", ".cu", ".cmake", ".sh"}:
            assert len(path.read_text().splitlines()) <= 450, path.relative_to(ROOT)
