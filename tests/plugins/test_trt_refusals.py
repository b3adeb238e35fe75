"""What the TensorRT plugin refuses, sentence by sentence, and the TensorRT it does not talk to."""

from __future__ import annotations

import ctypes
import re
import subprocess

import pytest

from .cached_build import CSRC, Compiler

pytestmark = pytest.mark.slow

STANDIN = CSRC / "tests" / "tensorrt_standin"
SOURCES = sorted(CSRC.glob("trt/*.cpp"))
SENTENCE = re.compile(r"mambapose SelectiveScan, \w+: .+ (was|were) wanted, found .+")
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SHARED = ("-shared", "-fPIC", "-fvisibility=hidden")


def compiler(*flags: str) -> Compiler:
    """With the stand-in's headers."""
    warnings = ("-Wall", "-Wextra", "-Werror")
    return Compiler(("-std=c++17", *warnings, *flags), system=(STANDIN,))


@pytest.fixture(scope="session")
def sentences() -> dict[str, str]:
    """What the plugin says, by case."""
    sources = [CSRC / "tests" / "trt_refusals.cpp", *SOURCES]
    target = compiler(*SANITIZE).build("trt_refusals", sources, "-ldl")
    done = subprocess.run([target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "field 'groups': 1 or more was wanted, found 0" in done.stderr  # without a logger
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def test_everything_wrong_is_refused_in_one_sentence(sentences):
    assert len(sentences) > 70
    exceptions = {"kernel error", "tactics, number"}
    odd = [f"{case}: {said}" for case, said in sentences.items() if not SENTENCE.fullmatch(said)]
    assert {line.split(": ")[0] for line in odd} == exceptions


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("node, unknown field", "field 'direction': no field of this name was wanted, found one"),
        ("node, type", "field 'groups': an INT32 field was wanted, found field type 1"),
        ("node, 64 bits", "field 'groups': 1 or more was wanted, found 4294967296"),
        ("node, reverse too long", "field 'reverse': 2 values, one per direction, was wanted"),
        ("node, merge", "field 'merge': 'none' or 'sum' was wanted, found 'mean'"),
        ("node, merge past its length", "field 'merge': 'none' or 'sum' was wanted, found 'su'"),
        ("node, gate none with z", "field 'gate': 'silu' together with z was wanted"),
        ("node, state with segment", "field 'segment': 0 together with an initial_state"),
        ("engine, version", "serialization version 1 was wanted, found 5; build the engine again"),
        ("engine without reverse", "field 'reverse': a value from the engine was wanted"),
        ("shape, length", "dt axis 1: length 7 as in u was wanted, found 8"),
        ("shape, states of B", "B axis 2: states 4 as in A was wanted, found 5"),
        ("shape, order rows", "order axis 0: directions 2 as in the node was wanted, found 3"),
        ("shape, groups", "field 'groups': a divisor of the 6 channels was wanted, found 5"),
        ("shape, inputs", "10 (presence 31) was wanted, found 9; give TensorRT the .trt.onnx file"),
        ("shape, type of order", "order: int32 beside fp16 u was wanted, found int64"),
        ("no GPU", "configurePlugin: a GPU was wanted, found none"),
    ],
)
def test_sentence(sentences, case, said):
    assert said in sentences[case]


CALLER = """
#include <NvInferRuntime.h>
struct Finder final : nvinfer1::ILoggerFinder
{
    nvinfer1::ILogger* findLogger() override { return nullptr; }
};
extern "C" __attribute__((visibility("default"))) int getInferLibMajorVersion() { return MAJOR; }
extern "C" __attribute__((visibility("default"))) void* makeFinder() { return new Finder; }
"""
KERNELS = """
extern "C" {
int mambapose_scan_cuda_plan() { return -1; }
int mambapose_scan_cuda() { return -1; }
int mambapose_scan_cuda_device() { return -1; }
char const* mambapose_scan_cuda_version() { return "none"; }
}
"""


@pytest.fixture(scope="session")
def plugin(tmp_path_factory) -> ctypes.CDLL:
    """The plugin without kernels, built with the stand-in headers."""
    kernels = tmp_path_factory.mktemp("plugin") / "kernels.cpp"
    kernels.write_text(KERNELS)
    sources = [kernels, *SOURCES]
    return ctypes.CDLL(str(compiler(*SHARED).build("refusing_plugin.so", sources, "-ldl")))


@pytest.mark.parametrize("caller", ["same", "older", "newer", "rtx"])
def test_another_major_release_gets_no_creators(plugin, caller, tmp_path, capfd):
    """Its logger has other virtual functions, so it is told on standard error, not through that."""
    built_for = plugin.mambapose_trt_built_for() // 10000
    major = {"same": built_for, "older": built_for - 1, "newer": built_for + 1, "rtx": 1}[caller]
    (tmp_path / "caller.cpp").write_text(CALLER)
    flags = ("-shared", "-fPIC", f"-DMAJOR={major}")
    library = compiler(*flags).build("libnvinfer.so", [tmp_path / "caller.cpp"])
    tensorrt = ctypes.CDLL(str(library))
    tensorrt.makeFinder.restype = ctypes.c_void_p
    plugin.setLoggerFinder.argtypes = [ctypes.c_void_p]
    plugin.setLoggerFinder(tensorrt.makeFinder())
    count = ctypes.c_int32(-1)
    plugin.getCreators(ctypes.byref(count))
    plugin.setLoggerFinder(None)
    said = capfd.readouterr().err
    if caller in ("older", "newer"):
        assert count.value == 0
        assert f"TensorRT {built_for} was wanted, found {major}; build the plugin again" in said
    else:  # TensorRT for RTX counts its releases anew; its interfaces are those of TensorRT 11
        assert built_for >= 11, "the stand-in headers are of TensorRT 11"
        assert (count.value, said) == (1, "")
