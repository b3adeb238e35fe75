"""The TensorRT plugin compiles against the headers of every release, the libraries hold and need
what they should and nothing else, and a build that cannot work says why in one sentence.

Headers: MAMBAPOSE_TENSORRT_ROOTS, a list of folders with include/NvInfer.h, else TENSORRT_ROOT,
else those installed; without any, the stand-in alone. The libraries are built once per checkout,
into build/test-plugin.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from .cached_build import CSRC, ROOT, Compiler, locked

STANDIN = CSRC / "tests" / "tensorrt_standin"
SCRIPT = ROOT / "plugins" / "cmake" / "build_plugin.sh"
SOURCES = sorted(CSRC.glob("trt/*.cpp"))
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror")
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", *WARNINGS)
COMPILERS = ("g++", "g++-11", "clang++")
AARCH64 = "aarch64-linux-gnu-g++"
SYSTEM_INCLUDES = ("/usr/include/aarch64-linux-gnu", "/usr/include/x86_64-linux-gnu")
NEWEST_GLIBC = (2, 35)  # Ubuntu 22.04, that is JetPack 6
TEST_ARCHITECTURE = "87"

EXPORTS = {
    "cuda": {
        "mambapose_scan_cuda", "mambapose_scan_cuda_plan", "mambapose_scan_cuda_device",
        "mambapose_scan_cuda_version", "mambapose_scan_cuda_backward",
        "mambapose_scan_cuda_backward_workspace",
    },
    "trt": {
        "getCreators", "setLoggerFinder", "mambapose_trt_built_for", "mambapose_scan_cuda_version",
    },
}  # fmt: skip
LIBRARIES = re.compile(
    r"(libstdc\+\+|libgcc_s|libc|libm|libdl|librt|libpthread|ld-linux[\w-]*)\.so"
)


def include_folders() -> list[Path]:
    """Folders of real headers, in the order of the docstring."""
    listed = os.environ.get("MAMBAPOSE_TENSORRT_ROOTS") or os.environ.get("TENSORRT_ROOT") or ""
    roots = [Path(entry) for entry in listed.split(":") if entry]
    folders = [root / "include" for root in roots] or [Path(entry) for entry in SYSTEM_INCLUDES]
    return [folder for folder in folders if (folder / "NvInfer.h").exists()]


HEADERS = [*include_folders(), STANDIN]


def name_of(headers: Path) -> str:
    """The folder a set of headers was unpacked to, for the names of tests."""
    return headers.parent.name if headers.name == "include" else headers.name


def tool(name: str) -> str:
    """Path of a program; skips the test when it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def nvcc() -> str:
    """Path of nvcc, where CMake looks for it; skips the test when there is none."""
    found = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(found).exists():
        pytest.skip("no CUDA compiler")
    tool("cmake")
    return found


def compile_plugin(
    program: str, headers: Path, *flags: str, sources: Sequence[Path] = SOURCES
) -> list[Path]:
    """Objects of sources of the plugin; the stand-in folder lends cudaStream_t."""
    compiler = Compiler((*FLAGS, *flags), system=(headers, STANDIN), program=tool(program))
    return compiler.objects(sources)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("headers", HEADERS, ids=name_of)
def test_plugin_compiles_without_a_warning(headers, compiler):
    assert len(compile_plugin(compiler, headers)) == len(SOURCES)


@pytest.mark.slow
@pytest.mark.parametrize("headers", HEADERS, ids=name_of)
def test_plugin_compiles_to_aarch64_objects(headers):
    objects = compile_plugin(AARCH64, headers, "-O2")
    assert len(objects) == len(SOURCES)
    for path in objects:
        machine = int.from_bytes(path.read_bytes()[18:20], "little")
        assert machine == 183, f"{path.name} is for machine {machine}, not EM_AARCH64"


def test_headers_before_10_3_do_not_compile(tmp_path):
    """Builds without CMake are told the same."""
    write_version(tmp_path, "10.2.0")
    flags = ["-std=c++17", f"-I{CSRC}", f"-I{tmp_path}", f"-isystem{STANDIN}", "-fsyntax-only"]
    command = [tool("g++"), *flags, CSRC / "trt/trt_version.cpp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "TensorRT 10.3 or newer is wanted" in done.stderr


def test_static_registration_asks_for_the_registry():
    if HEADERS[0] == STANDIN:
        pytest.skip("no headers of TensorRT; set MAMBAPOSE_TENSORRT_ROOTS")
    define = "-DMAMBAPOSE_TRT_STATIC_REGISTRATION"
    creator = [CSRC / "trt/trt_creator.cpp"]
    (made,) = compile_plugin("g++", HEADERS[0], define, sources=creator)
    assert "getPluginRegistry" in undefined_symbols(made)


def write_version(folder: Path, version: str) -> Path:
    """An NvInferVersion.h like NVIDIA's, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True)
    lines = [f"#define NV_TENSORRT_{part} {number} //!< A part." for part, number in numbers]
    (folder / "NvInferVersion.h").write_text("\n".join([*lines, ""]))
    return folder


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script behind `make plugin`."""
    inherited = {key: value for key, value in os.environ.items() if key != "PLUGIN_FLAGS"}
    command = ["sh", SCRIPT, str(folder)]
    return subprocess.run(
        command, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


def refusal(folder: Path, **environment: str) -> str:
    """The one line in which a build says why it cannot be."""
    tool("cmake")
    tool("g++")
    done = build(folder, **environment)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("mambapose: ")
    return lines[0]


@pytest.fixture
def some_compiler(tmp_path) -> str:
    """A program that stands where nvcc would; the headers are looked at before it is used."""
    path = tmp_path / "some-nvcc"
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "10.0.1", "10.2.0"])
def test_older_tensorrt_is_refused(version, some_compiler, tmp_path):
    headers = write_version(tmp_path / "trt" / "include", version)
    said = refusal(tmp_path / "build", CUDACXX=some_compiler, TENSORRT_ROOT=str(headers.parent))
    assert "TensorRT 10.3 or newer was wanted (JetPack 6.1 or newer)" in said
    assert f"found {version} in {headers}; upgrade TensorRT or set TENSORRT_ROOT" in said


@pytest.mark.parametrize(
    ("macros", "found"),
    [("#define OF_A_RELEASE 9\n", "found 9.1.0"), ("", "a version in NvInferVersion.h was wanted")],
)
def test_version_behind_another_macro_is_read(macros, found, some_compiler, tmp_path):
    text = macros + "#define NV_TENSORRT_MAJOR OF_A_RELEASE //!< x\n"
    text += "#define NV_TENSORRT_MINOR 1\n#define NV_TENSORRT_PATCH 0\n"
    (tmp_path / "NvInferVersion.h").write_text(text)
    assert found in refusal(tmp_path, CUDACXX=some_compiler, TENSORRT_ROOT=str(tmp_path))


def test_folder_without_headers_is_refused(some_compiler, tmp_path):
    said = refusal(tmp_path / "build", CUDACXX=some_compiler, TENSORRT_ROOT=str(tmp_path))
    assert f"a folder with include/NvInfer.h was wanted, found {tmp_path} without it" in said
    headers = write_version(tmp_path / "include", "10.3.0")
    said = refusal(tmp_path / "build", CUDACXX=some_compiler, TENSORRT_ROOT=str(tmp_path))
    assert f"NvInfer.h was wanted beside NvInferVersion.h, found none in {headers}" in said


def test_missing_headers_are_said(some_compiler, tmp_path):
    if any((Path(folder) / "NvInferVersion.h").exists() for folder in SYSTEM_INCLUDES):
        pytest.skip("this system has TensorRT's headers")
    said = refusal(tmp_path, CUDACXX=some_compiler, TENSORRT_ROOT="")
    assert "TensorRT's headers (NvInfer.h) were wanted, found none on this system" in said


def test_missing_compiler_is_said(tmp_path):
    said = refusal(tmp_path / "build", CUDACXX=str(tmp_path / "nvcc"), TENSORRT_ROOT="")
    assert f"a CUDA compiler was wanted, found none at {tmp_path / 'nvcc'}" in said


def test_compiler_nowhere_is_said(tmp_path):
    folders = ("/usr/local/cuda/bin", "/usr/local/bin", "/usr/bin")
    if any(Path(folder, "nvcc").exists() for folder in folders):
        pytest.skip("this system has nvcc where CMake always looks")
    said = refusal(tmp_path, PATH="/usr/bin:/bin", CUDACXX="", TENSORRT_ROOT="")
    assert "found no nvcc on PATH or in /usr/local/cuda/bin" in said


def test_missing_cxx_compiler_is_said(tmp_path):
    said = refusal(tmp_path / "build", CXX=str(tmp_path / "g++"), TENSORRT_ROOT="")
    assert "a C++ compiler was wanted, found none; install one (g++)" in said


def test_compiler_that_does_not_work_is_said(some_compiler, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "include").symlink_to(HEADERS[0])
    said = refusal(tmp_path / "build", CUDACXX=some_compiler, TENSORRT_ROOT=str(root))
    assert f"found that {some_compiler} cannot compile" in said


def test_missing_library_for_static_registration_is_said(some_compiler, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "include").symlink_to(HEADERS[0])
    flags = {"PLUGIN_FLAGS": "-DMAMBAPOSE_TRT_STATIC_REGISTRATION=ON"}
    done = build(tmp_path / "build", CUDACXX=some_compiler, TENSORRT_ROOT=str(root), **flags)
    if "cannot compile" in done.stderr:
        pytest.skip("this system has libnvinfer")
    assert "libnvinfer.so was wanted for static registration, found none" in done.stderr


def test_make_says_one_sentence(tmp_path):
    command = [tool("make"), "-C", str(ROOT), "--no-print-directory", "plugin"]
    variables = [f"PLUGIN={tmp_path / 'build'}", f"CUDACXX={tmp_path / 'nvcc'}", "TENSORRT_ROOT="]
    tool("cmake")
    done = subprocess.run([*command, *variables], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    ours, makes = done.stderr.splitlines()
    assert ours.startswith("mambapose: a CUDA compiler was wanted")
    assert makes.startswith("make")


def configure(folder: Path, *flags: str, **environment: str) -> str:
    """What CMake says about the project when it is configured as for pip."""
    places = ["-S", ROOT / "plugins", "-B", folder]
    command = ["cmake", *places, "-DMAMBAPOSE_FETCH_HEADERS=OFF", *flags]
    inherited = {**os.environ, **environment}
    done = subprocess.run(command, env=inherited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_plain_installation_leaves_the_gpu_out(tmp_path):
    tool("cmake")
    devices = ("nvidiactl", "nvhost-gpu", "nvhost-ctrl-gpu", "nvgpu", "nvmap", "dxg")
    if any(Path("/dev", name).exists() for name in devices):
        pytest.skip("this machine has an NVIDIA device")
    said = configure(tmp_path / "auto")
    assert "no GPU libraries: an NVIDIA device was wanted, found none on this machine" in said
    assert "GPU" not in configure(tmp_path / "off", "-DMAMBAPOSE_CUDA=OFF")


@pytest.mark.slow
def test_architectures_are_those_of_the_machine(tmp_path):
    compiler = nvcc()
    if Path("/proc/device-tree/compatible").exists():
        pytest.skip("this board tells its architecture itself")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '9.0\\n8.6\\n9.0\\n'\n")
    smi.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDACXX": compiler}
    flags = ["-DMAMBAPOSE_CUDA=ON", "-DMAMBAPOSE_TRT=OFF"]
    said = configure(tmp_path / "build", *flags, **environment)
    assert "for architectures 90;86" in said


@pytest.fixture(scope="session")
def built() -> SimpleNamespace:
    """Both libraries for one architecture, and the version of the headers they were built with."""
    compiler = nvcc()
    headers = HEADERS[0]
    folder = ROOT / "build" / "test-plugin"
    root = folder / "tensorrt"
    with locked("test-plugin"):  # another process may build here, too
        root.mkdir(parents=True, exist_ok=True)
        if (root / "include").resolve() != headers:
            (root / "include").unlink(missing_ok=True)
            (root / "include").symlink_to(headers)
        named = {"TENSORRT_ROOT": str(root), "CUDA_ARCHS": TEST_ARCHITECTURE}
        done = build(folder, CUDACXX=compiler, **named)
    assert done.returncode == 0, done.stderr
    paths = {name: folder / f"libmambapose_{name}.so" for name in EXPORTS}
    assert done.stdout.splitlines()[-2:] == [str(path) for path in paths.values()]
    log = (folder / "mambapose_cuda.log").read_text() + (folder / "mambapose_trt.log").read_text()
    return SimpleNamespace(paths=paths, headers=headers, log=log)


def table(command: list[str]) -> list[str]:
    """Lines of a binutils program."""
    tool(command[0])
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def undefined_symbols(path: Path) -> set[str]:
    """Names a library or object takes from others; those of a library carry @VERSION."""
    dynamic = ["-D"] if path.suffix == ".so" else []
    return {line.split()[-1] for line in table(["nm", *dynamic, "--undefined-only", str(path)])}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTS)
def test_library_exports_its_interface_and_nothing_else(built, name):
    lines = table(["nm", "-D", "--defined-only", str(built.paths[name])])
    assert {line.split()[-1] for line in lines} == EXPORTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTS)
def test_library_needs_only_the_c_and_cxx_runtime(built, name):
    path = built.paths[name]
    weak = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    system = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")
    unknown = {symbol for symbol in undefined_symbols(path) - weak if not system.search(symbol)}
    assert unknown == set()
    needed = [line for line in table(["readelf", "-dW", str(path)]) if "(NEEDED)" in line]
    libraries = {line.split("[")[1].rstrip("]") for line in needed}
    assert {library for library in libraries if not LIBRARIES.match(library)} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTS)
def test_library_runs_on_jetpack_6(built, name):
    """No newer glibc is needed, and no executable stack, which newer systems refuse."""
    lines = table(["readelf", "-lW", str(built.paths[name])])
    (stack,) = [line.split() for line in lines if "GNU_STACK" in line]
    assert stack[-2] == "RW"
    found = re.findall(r"(\S+)@GLIBC_(\d+)\.(\d+)", "\n".join(undefined_symbols(built.paths[name])))
    newer = [entry for entry in found if (int(entry[1]), int(entry[2])) > NEWEST_GLIBC]
    assert newer == []
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTS)
def test_library_holds_code_for_the_wanted_gpu(built, name):
    reader = shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump"
    lines = table([reader, "--list-elf", str(built.paths[name])])
    assert any(f"sm_{TEST_ARCHITECTURE}.cubin" in line for line in lines)


@pytest.mark.slow
def test_library_loads_without_a_gpu_and_says_what_it_is(built):
    plugin = ctypes.CDLL(str(built.paths["trt"]))
    text = (built.headers / "NvInferVersion.h").read_text()
    numbers = re.findall(r"#define (?:NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)\w* +(\d+)", text)
    version = {part: int(number) for part, number in numbers}
    wanted = version["MAJOR"] * 10000 + version["MINOR"] * 100 + version["PATCH"]
    assert plugin.mambapose_trt_built_for() == wanted
    plugin.mambapose_scan_cuda_version.restype = ctypes.c_char_p
    assert plugin.mambapose_scan_cuda_version()
    count = ctypes.c_int32(-1)
    plugin.getCreators.restype = ctypes.c_void_p
    assert plugin.getCreators(ctypes.byref(count))
    assert count.value == 1


def cuda_runtime_symbols() -> set[str]:
    """What libcudart_static.a of this toolkit defines; that of aarch64 comes with JetPack."""
    archives = sorted(Path("/usr/local/cuda").glob("targets/*/lib/libcudart_static.a"))
    if not archives:
        pytest.skip("no libcudart_static.a")
    lines = table(["nm", "--defined-only", str(archives[0])])
    return {line.split()[-1] for line in lines if line and not line.endswith(":")}


@pytest.mark.slow
def test_plugin_links_for_aarch64_but_for_the_cuda_runtime(built):
    """Toolkits for x86 hold no aarch64 libraries: all else that a Jetson links is linked here."""
    compiler = tool(AARCH64)
    plan = [CSRC / "cuda/scan_cuda_plan.cpp", CSRC / "core/scan_check.cpp"]
    objects = compile_plugin(AARCH64, built.headers, "-O2", sources=[*SOURCES, *plan])
    include = next(Path("/usr/local/cuda").glob("targets/*/include"))
    arch = f"-arch=sm_{TEST_ARCHITECTURE}"
    host = ("-ccbin", compiler, f"-I{include}", "-Xcompiler=-fPIC,-fvisibility=hidden")
    kernels = Compiler(("-std=c++17", "-O3", arch, *host), program=nvcc())
    objects.append(kernels.object(CSRC / "cuda/scan_cuda.cu"))
    exports = f"-Wl,--version-script={CSRC / 'trt/exports_trt.map'}"
    linker = Compiler((), program=compiler)
    library = linker.link("libmambapose_trt_aarch64.so", objects, "-shared", exports)
    lines = table(["nm", "-D", "--defined-only", str(library)])
    assert {line.split()[-1] for line in lines} == EXPORTS["trt"]
    system = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")
    symbols = {symbol for symbol in undefined_symbols(library) if not system.search(symbol)}
    wanted = {symbol for symbol in symbols if not symbol.startswith(("_ITM", "__gmon"))}
    assert wanted
    assert wanted <= cuda_runtime_symbols()


@pytest.mark.slow
def test_nothing_was_warned_of(built):
    assert re.findall(r".*warning.*", built.log) == []
