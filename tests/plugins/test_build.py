"""Finding ONNX Runtime's headers, building with and without a compiler, finding the library."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from mambapose.runtime.backends import native
from mambapose.runtime.errors import EngineError

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
SYMBOLS = {
    "mambapose_scan_abi", "mambapose_scan_cpu", "mambapose_scan_cpu_backward",
    "mambapose_scan_force_isa", "mambapose_scan_isa", "mambapose_scan_spec",
}  # fmt: skip


@pytest.fixture(scope="module")
def headers():
    """The script that CMake runs."""
    path = PLUGINS / "cmake" / "onnxruntime_headers.py"
    spec = importlib.util.spec_from_file_location("onnxruntime_headers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


DEB822 = """# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
# commented in the middle
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/a.gpg

Types: deb
URIs: http://mirror.example/off
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://mirror.example/sources-only
Suites: bookworm
Components: main
"""
ONE_LINE = """deb [arch=amd64 signed-by=/k.gpg] http://other.example/ubuntu jammy main universe
# deb http://commented.example jammy main
deb-src http://other.example/ubuntu jammy main
deb http://plain.example/ubuntu jammy-updates main
"""


def test_configured_mirrors_are_read(headers, tmp_path):
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (folder / "debian.sources").write_text(DEB822)
    (folder / "notes.txt").write_text("deb http://ignored.example jammy main")
    (tmp_path / "sources.list").write_text(ONE_LINE)
    assert headers.configured_sources(tmp_path) == [
        headers.Source("http://other.example/ubuntu", ("jammy",), "/k.gpg"),
        headers.Source("http://plain.example/ubuntu", ("jammy-updates",)),
        headers.Source(
            "http://mirror.example/debian",
            ("bookworm", "bookworm-updates"),
            "/usr/share/keyrings/a.gpg",
        ),
    ]


def test_running_release_is_tried_before_newer_ones(headers):
    mirror = headers.Source("http://mirror.example/debian", ("bookworm", "bookworm-updates"), "/k")
    other = headers.Source("http://other.example", ("nodistro",))
    tried = headers.candidates([other, mirror], "debian", "bookworm")
    assert [source.suites[0] for source in tried] == ["bookworm", "trixie", "forky", "sid"]
    assert {source.uri for source in tried} == {"http://mirror.example/debian"}
    assert headers.deb822_from_source(tried[1], "main") == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n"
        "Signed-By: /k\n"
    )


@pytest.mark.parametrize(
    ("system", "release", "message"),
    [("debian", "bookworm", "no mirror for bookworm"), ("fedora", "", "no release of fedora")],
)
def test_unknown_system_or_mirror_is_said(headers, system, release, message):
    with pytest.raises(headers.Unavailable, match=message):
        headers.candidates([], system, release)


def test_system_release_is_read(headers):
    text = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_CODENAME=bookworm\n'
    assert headers.system_release(text) == ("debian", "bookworm")


@pytest.fixture
def archive(headers, tmp_path):
    """A release archive with two headers and a library; its address."""
    tree = tmp_path / "onnxruntime-linux" / "include"
    tree.mkdir(parents=True)
    (tree / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 23\n")
    (tree / "onnxruntime_ep_c_api.h").write_text("\n")
    (tree / "libonnxruntime.so").write_text("not wanted")
    path = tmp_path / "release.tgz"
    with tarfile.open(path, "w:gz") as file:
        file.add(tree.parent, "onnxruntime-linux")
    return path.as_uri()


def test_release_archive_is_unpacked_into_the_cache(headers, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(headers.platform, "machine", lambda: "aarch64")
    packed = (tmp_path / "release.tgz").read_bytes()
    right = ("aarch64", hashlib.sha256(packed).hexdigest())
    monkeypatch.setitem(headers.MACHINES, "aarch64", right)
    cache = tmp_path / "cache" / "headers"
    assert headers.headers_from_release(cache, archive) == cache
    names = {"onnxruntime_c_api.h", "onnxruntime_ep_c_api.h"}
    assert {path.name for path in cache.iterdir()} == names
    assert headers.headers_below(tmp_path / "cache") == cache
    assert [path.name for path in cache.parent.iterdir()] == ["headers"]


def test_another_release_archive_is_not_unpacked(headers, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(headers.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(headers.tarfile, "open", None)
    with pytest.raises(headers.Unavailable, match=r"SHA-256 7c63c735\w+ was wanted, found \w{64}"):
        headers.headers_from_release(tmp_path / "cache", archive)
    assert not (tmp_path / "cache").exists()


def test_release_archive_out_of_reach_is_said(headers, tmp_path, monkeypatch):
    monkeypatch.setattr(headers.platform, "machine", lambda: "x86_64")
    address = tmp_path.as_uri() + "/release-{machine}"
    with pytest.raises(headers.Unavailable, match="release-x64"):
        headers.headers_from_release(tmp_path / "cache", address)
    monkeypatch.setattr(headers.platform, "machine", lambda: "riscv64")
    with pytest.raises(headers.Unavailable, match="riscv64"):
        headers.headers_from_release(tmp_path / "cache")


def test_cached_headers_need_no_network(headers, tmp_path, capsys, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "onnxruntime_c_api.h").touch()
    monkeypatch.setattr(sys, "argv", ["x", "--cache", str(tmp_path / "cache"), "--build", "b"])
    monkeypatch.setattr(headers, "headers_from_apt", None)
    assert headers.main() == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cache'}\n"


def test_every_failed_way_gives_its_reason(headers, tmp_path, capsys, monkeypatch):
    def fails(cache):
        raise headers.Unavailable("out of reach")

    def refuses(cache):
        raise PermissionError("read-only")

    fails.__name__, refuses.__name__ = "headers_from_apt", "headers_from_release"
    monkeypatch.setattr(headers, "headers_from_apt", fails)
    monkeypatch.setattr(headers, "headers_from_release", refuses)
    monkeypatch.setattr(
        sys, "argv", ["x", "--cache", str(tmp_path / "c"), "--build", str(tmp_path)]
    )
    assert headers.main() == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["headers from apt: out of reach", "headers from release: read-only"]


def test_build_folder_stands_in_for_a_read_only_cache(headers, tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    build = tmp_path / "build"
    assert headers.usable_cache(blocked / "mambapose" / "headers", build) == build
    assert headers.usable_cache(tmp_path / "a" / "headers", build) == tmp_path / "a" / "headers"


def _configure(build: Path, *flags: str, **environment: str) -> str:
    """What CMake says when it configures the project. Fails the test if it fails."""
    if shutil.which("cmake") is None:
        pytest.skip("CMake is not installed")
    done = subprocess.run(
        ["cmake", "-S", PLUGINS, "-B", build, *flags],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_a_compiler_configuring_and_installing_succeed(tmp_path):
    said = _configure(tmp_path / "build", CXX=str(tmp_path / "no-compiler"))
    assert "no compiled selective scan: no C++ compiler was found" in said
    command = ["cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "installed"]
    subprocess.run(command, check=True, capture_output=True)
    assert not list(tmp_path.glob("installed/**/*.so"))


ROOT = PLUGINS.parent
TOP_FOLDERS_OF_THE_MACHINE = ("build", ".venv", "out")  # not in a source distribution
INCLUDE = re.compile(r'^\s*#\s*include "([^"]+)"', re.MULTILINE)


def _tracked() -> list[str]:
    """The files of the checkout, as git has them; skips without git."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: which files belong to it is not known")
    listing = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def _copied(folder: Path, names: Iterable[str]) -> Path:
    """These files of the checkout, in a folder of their own."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.slow
def test_wheel_without_a_compiler_is_complete_python(tmp_path):
    """pip builds and the wheel holds the four packages, no library, and what a board compiles."""
    for name in ("pip", "scikit_build_core"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    tracked = _tracked()
    copy = _copied(tmp_path / "copy", tracked)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*pip, "-w", tmp_path, copy],
        env={**os.environ, "CXX": str(tmp_path / "no-compiler")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name.removeprefix("mambapose/") for name in wheel.namelist()}
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"runtime", "export", "plugins", "benchmarks"}
    assert not [name for name in names if name.endswith(".so")]
    for source in ("CMakeLists.txt", "cmake/build_plugin.sh", "csrc/cuda/scan_cuda.cu"):
        assert f"plugins/{source}" in names
    assert "plugins/csrc/trt/driver/trt_driver.cpp" in names
    tests, shipped = "plugins/csrc/tests/", ("plugins/", "runtime/data/", "export/weights/")
    wanted = {name for name in tracked if name.startswith(shipped) and not name.startswith(tests)}
    assert wanted <= names
    assert not [name for name in names if name.startswith(tests)]


def test_what_is_installed_includes_nothing_of_the_tests():
    """But the port of the CUDA kernels, where nvcc does not compile them."""
    csrc, found = PLUGINS / "csrc", {}
    for source in (path for path in csrc.rglob("*") if path.suffix in (".h", ".cpp", ".cu")):
        if source.is_relative_to(csrc / "tests"):
            continue
        for name in INCLUDE.findall(source.read_text()):
            if (csrc / name).is_file():
                found[name] = source.name
            else:
                assert name.startswith("NvInfer"), f"{source}: {name} is not named from csrc"
    of_tests = {(name, source) for name, source in found.items() if name.startswith("tests/")}
    assert of_tests == {("tests/cuda_shim.h", "scan_cuda_port.h")}


def test_only_top_folders_are_left_out_of_a_source_distribution():
    """A name without the slash would leave out every folder of that name, however deep."""
    line = re.search(r"^sdist\.exclude = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert line is not None
    patterns = re.findall(r'"([^"]+)"', line[1])
    assert patterns == [f"/{name}" for name in TOP_FOLDERS_OF_THE_MACHINE]


@pytest.mark.slow
def test_source_distribution_is_the_checkout(tmp_path):
    """Every file, folders called build further down as well, none of the machine's own."""
    if importlib.util.find_spec("scikit_build_core") is None:
        pytest.skip("scikit_build_core is not installed")
    tracked = _tracked()
    copy = _copied(tmp_path / "copy", tracked)
    nested = [f"runtime/{name}/kept.py" for name in TOP_FOLDERS_OF_THE_MACHINE]
    for name in (*nested, *(f"{name}/dropped.py" for name in TOP_FOLDERS_OF_THE_MACHINE)):
        (copy / name).parent.mkdir(parents=True)
        (copy / name).touch()
    build = f"from scikit_build_core.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    assert {*tracked, *nested} - names == set()
    assert names - {*tracked, *nested} == {"PKG-INFO"}


def _needs_compiler() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")


def test_without_headers_the_kernels_are_built_alone(tmp_path):
    _needs_compiler()
    if Path("/usr/include/onnxruntime").exists():
        pytest.skip("this system has ONNX Runtime's headers")
    said = _configure(tmp_path, "-DMAMBAPOSE_FETCH_HEADERS=OFF", ONNXRUNTIME_INCLUDE_DIR="")
    assert "kernels without the ONNX Runtime operator" in said
    assert "MAMBAPOSE_FETCH_HEADERS is off" in said


def test_headers_that_are_too_old_are_not_used(tmp_path):
    _needs_compiler()
    (tmp_path / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 17\n")
    said = _configure(tmp_path / "build", f"-DONNXRUNTIME_INCLUDE_DIR={tmp_path}")
    assert "are version 17, 20 is the oldest that works" in said
    said = _configure(tmp_path / "other", ONNXRUNTIME_INCLUDE_DIR=str(tmp_path))
    assert "are version 17, 20 is the oldest that works" in said


def test_wrong_header_folder_is_refused(tmp_path):
    _needs_compiler()
    with pytest.raises(AssertionError, match="ONNXRUNTIME_INCLUDE_DIR: a folder with"):
        _configure(tmp_path, f"-DONNXRUNTIME_INCLUDE_DIR={tmp_path}")


def test_library_exports_its_interface_and_nothing_else(library):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    ).stdout
    exported = {line.split()[-1] for line in listing.splitlines()}
    assert exported - {"RegisterCustomOps"} == SYMBOLS


STUB = """
int mambapose_scan_spec(void) {{ return {spec}; }}
int mambapose_scan_abi(void) {{ return {abi}; }}
char const* mambapose_scan_isa(void) {{ return "scalar"; }}
{more}
"""


def _stub(folder: Path, *, spec: int = 1, abi: int = 1, more: str = "") -> Path:
    """A library that only says what it is."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    source = folder / "stub.c"
    source.write_text(STUB.format(spec=spec, abi=abi, more=more))
    target = folder / native.LIBRARY_NAME
    subprocess.run(["cc", "-shared", "-fPIC", "-o", target, source], check=True)
    return target


def test_library_says_what_it_is(tmp_path):
    plain = native.library_info(_stub(tmp_path))
    assert plain == native.LibraryInfo(spec=1, abi=1, isa="scalar", onnxruntime=False)
    with_operator = tmp_path / "with"
    with_operator.mkdir()
    more = "void RegisterCustomOps(void) {}"
    assert native.library_info(_stub(with_operator, more=more)).onnxruntime


@pytest.mark.parametrize(("spec", "abi"), [(2, 1), (1, 2)])
def test_library_of_another_version_is_refused(spec, abi, tmp_path):
    with pytest.raises(EngineError, match=f"found {spec} and {abi}; reinstall"):
        native.library_info(_stub(tmp_path, spec=spec, abi=abi))


def test_other_files_are_refused(tmp_path):
    wrong = tmp_path / native.LIBRARY_NAME
    wrong.write_text("not a library")
    with pytest.raises(EngineError, match="found something else"):
        native.library_info(wrong)


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """An installed plugins folder of our own, and no environment variable."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.setattr(native, "installed_folders", lambda: iter([folder]))
    monkeypatch.delenv(native.VARIABLE, raising=False)
    return folder


def test_library_is_looked_for_in_order(installed, tmp_path, monkeypatch):
    assert native.find_library() is None
    assert native.find_library(bundle=tmp_path / "bundle") is None
    (installed / native.LIBRARY_NAME).touch()
    assert native.find_library() == installed / native.LIBRARY_NAME
    in_bundle = tmp_path / "bundle" / "plugins" / native.LIBRARY_NAME
    in_bundle.parent.mkdir(parents=True)
    in_bundle.touch()
    assert native.find_library(bundle=tmp_path / "bundle") == in_bundle
    named, given = tmp_path / "named.so", tmp_path / "given.so"
    named.touch()
    given.touch()
    monkeypatch.setenv(native.VARIABLE, str(named))
    assert native.find_library(bundle=tmp_path / "bundle") == named
    assert native.find_library(given, bundle=tmp_path / "bundle") == given


def test_named_library_must_exist(installed, tmp_path, monkeypatch):
    with pytest.raises(EngineError, match="as given"):
        native.find_library(tmp_path / "absent.so")
    monkeypatch.setenv(native.VARIABLE, str(tmp_path / "absent.so"))
    with pytest.raises(EngineError, match="by MAMBAPOSE_LIBRARY"):
        native.find_library()


@pytest.mark.parametrize(
    ("signatures", "version", "runs"),
    [("1", "1.20.0", True), ("2", "1.26.0", False), ("2", "1.27.0", True), ("2", "2.0", True)],
)
def test_function_form_is_refused_where_it_would_be_wrong(signatures, version, runs):
    metadata = {native.SIGNATURES_KEY: signatures}
    if runs:
        native.check_function_form(metadata, version)
        native.check_function_form({}, version)
    else:
        with pytest.raises(EngineError, match=r"1\.27 or newer"):
            native.check_function_form(metadata, version)


def test_the_notice_is_one_sentence():
    assert "\n" not in native.slow_notice()
    assert "slow" in native.slow_notice()
