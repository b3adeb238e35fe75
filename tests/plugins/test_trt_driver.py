"""The TensorRT plugin lives through a network's life, from createPlugin to enqueue, as TensorRT
leads it (csrc/trt/driver), on the host build of the kernels; and the driver notices
when the plugin breaks the protocol.

The headers are the stand-in's. Where real ones are found, plugin and driver are also built with
those, and with one of each: MAMBAPOSE_TENSORRT_ROOTS, a list of folders with include/NvInfer.h,
else TENSORRT_ROOT, else those installed.
A build of NVIDIA's own sample plugins behind the driver's generic part is run when
MAMBAPOSE_TRT_CALIBRATION names a folder with a program ``run``.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from .cached_build import CSRC, Compiler, kept_run
from .cuda_cases import build_shim

pytestmark = pytest.mark.slow

DRIVER = CSRC / "trt" / "driver"
STANDIN = CSRC / "tests" / "tensorrt_standin"
SYSTEM_INCLUDES = ("/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu")
LAYOUT_OF = 11  # major release whose layout the stand-in has


def include_folders() -> list[Path]:
    """Folders of real headers: of the list, else of TENSORRT_ROOT, else those installed."""
    listed = os.environ.get("MAMBAPOSE_TENSORRT_ROOTS") or os.environ.get("TENSORRT_ROOT") or ""
    folders = [Path(root) / "include" for root in listed.split(":") if root]
    folders = folders or [Path(entry) for entry in SYSTEM_INCLUDES]
    return [folder for folder in folders if (folder / "NvInfer.h").exists()]


def major_of(headers: Path) -> int:
    """The release of TensorRT that headers belong to, by its first number."""
    words = (headers / "NvInferVersion.h").read_text()
    found = re.findall(r"#define (?:NV_TENSORRT|TRT)_MAJOR\w* (\d+)", words)
    assert found, headers
    return int(found[0])


REAL = include_folders()
needs_real = pytest.mark.skipif(
    not REAL, reason="no headers of TensorRT: MAMBAPOSE_TENSORRT_ROOTS names folders that have them"
)


def build_driver(headers: Path) -> Path:
    """The driver, for the life of a plugin built with these headers or their layout."""
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1")
    compiler = Compiler(flags, system=(headers, STANDIN))
    return compiler.build("trt_driver", sorted(DRIVER.glob("trt_driver*.cpp")), "-ldl")


def build_plugin(headers: Path, kernels: Path, changed: Path | None = None) -> Path:
    """The plugin with the host build of the kernels; changed: holds other files of csrc."""
    flags = ("-std=c++17", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden")
    includes = (CSRC,) if changed is None else (changed, CSRC)
    # The stand-in's CUDA types serve real headers, too.
    compiler = Compiler(flags, includes, system=(headers, STANDIN))
    objects = compiler.objects(compiler.overlaid(sorted(CSRC.glob("trt/*.cpp"))))
    libraries = [str(kernels), f"-Wl,-rpath,{kernels.parent}", "-ldl"]
    link = ["-shared", "-Wl,--no-undefined", *libraries]
    return compiler.link("libmambapose_trt.so", objects, *link)


def drive(driver: Path, plugin: Path, *cases: str) -> subprocess.CompletedProcess[str]:
    """One run of the driver."""
    return kept_run(driver, str(plugin), "--shim", *cases)


@pytest.fixture(scope="session")
def kernels() -> Path:
    """The host build of the CUDA kernels."""
    return build_shim()


@pytest.fixture(scope="session")
def driver() -> Path:
    """The driver built with the stand-in."""
    return build_driver(STANDIN)


@pytest.fixture(scope="session")
def plugin(kernels) -> Path:
    """The plugin, built with the stand-in."""
    return build_plugin(STANDIN, kernels)


def test_the_plugin_lives_as_tensorrt_leads_it(driver, plugin):
    done = drive(driver, plugin)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = re.findall(r"^ok ([\w-]+): .* (\d) tactics", done.stdout, re.MULTILINE)
    assert f"{len(cases)} of {len(cases)} right" in done.stdout
    assert len(cases) >= 30
    assert {"long", "long-merged", "vim-fp16", "vim-bf16"} <= {
        name for name, tactics in cases if tactics == "3"
    }, "cases in which every tactic is another launch"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "a plugin library was wanted, found none"),
        (["PLUGIN"], 2, "this driver has host memory only"),
        (["PLUGIN", "--shim", "no-such-case"], 1, "0 of 0 right"),
        (["/nowhere.so", "--shim"], 1, "a plugin library was wanted, found /nowhere.so: cannot"),
    ],
)
def test_the_driver_says_what_it_cannot_take(arguments, status, said, driver, plugin):
    command = [driver, *(str(plugin) if word == "PLUGIN" else word for word in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert said in done.stdout


Patches = Sequence[tuple[str, str, str]]  # file, text that is there once, text instead


@dataclass(frozen=True)
class Fault:
    """A mistake in the plugin, the cases that are run, and what the driver says of it."""

    patches: Patches
    cases: tuple[str, ...]
    complaint: str
    status: int = 1


PLUGIN, HEADER, FIELDS, PLAN = (
    "trt/trt_plugin.cpp",
    "trt/trt_plugin.h",
    "trt/trt_fields.cpp",
    "trt/trt_plan.cpp",
)
LAUNCH = "if (mambapose_scan_cuda(&call.params, &call.plan, workspace, workspaceBytes, stream"
SIZE = "return static_cast<size_t>(workspaceBound("
DONE = """            throw std::runtime_error(error);
        }
        return kSUCCESS;
"""

FAULTS = {
    "shape shared after clone": Fault(
        [
            (HEADER, "    std::optional<Prepared> mPrepared;",
             "    static inline std::optional<Prepared> mPrepared;"),
            (PLUGIN, "Prepared& call = prepare(inputDesc);", "Prepared& call = *mPrepared;"),
        ],
        ("posemamba",), "(y:|enqueue failed|written)",
    ),
    "tactic shared after clone": Fault(
        [(HEADER, "    int32_t mTactic{", "    static inline int32_t mTactic{")],
        ("long",), "the workspace was",
    ),
    "tactic forgotten by clone": Fault(
        [(PLUGIN, "    mTactic = other.mTactic;\n", ""),
         (PLUGIN, "    mPrepared = other.mPrepared;\n", "")],
        ("long",), "tactic [13]: the workspace was (not|wrongly) written",
    ),
    "attributes forgotten by clone": Fault(
        [(PLUGIN, "    : ScanPlugin(other.mAttributes)", "    : ScanPlugin(ScanAttributes{})")],
        ("vim",), "clone|failed with",
    ),
    "clone is the object itself": Fault(
        [(PLUGIN, '"attachToContext", nullptr, [&] { return new ScanPlugin(*this); }',
          '"attachToContext", nullptr, [&] { return this; }')],
        ("plain",), "attachToContext gave the object itself",
    ),
    "a field is not serialised": Fault(
        [(FIELDS, '    word("merge", mAttributes.merge);\n', "")],
        ("vim",), "createPlugin in the runtime phase gave no plugin.*'merge'",
    ),
    "a field is serialised with another value": Fault(
        [(FIELDS, 'integer("delta_softplus", mAttributes.deltaSoftplus);',
          'integer("delta_softplus", mVersion);')],  # which is 1
        ("no-softplus",), "y: value",
    ),
    "a serialised string is one short": Fault(
        [(FIELDS, "static_cast<int32_t>(value.size())); };",
          "static_cast<int32_t>(value.size()) - 1); };")],
        ("vim",), "createPlugin in the runtime phase gave no plugin.*'su'",
    ),
    "a string is read to its terminator": Fault(
        [(FIELDS, "found.assign(static_cast<char const*>(field->data), "
          "static_cast<size_t>(field->length));",
          "found.assign(static_cast<char const*>(field->data));")],
        ("constant-c",), "createPlugin in the build phase gave no plugin.*sum#",
    ),
    "the workspace pointer is ignored": Fault(
        [(PLUGIN, LAUNCH, "alignas(256) static char own[1 << 20];\n        "
          + LAUNCH.replace("workspace, workspaceBytes", "own, sizeof own"))],
        ("long",), "tactic 3: the workspace was not written",
    ),
    "the workspace has no size": Fault(
        [(PLUGIN, SIZE, SIZE.replace("return ", "return 0 * "))],
        ("long",), "enqueue failed",
    ),
    "the workspace is too small": Fault(
        [(PLUGIN, SIZE, SIZE.replace("return ", "return 1 + 0 * "))],
        ("long",), "the workspace: written 1 bytes past its end",
    ),
    "the workspace is of the typical sizes": Fault(
        [(PLUGIN, "return &inputs[position].max; }", "return &inputs[position].opt; }")],
        ("posemamba",), "the workspace for .* is .* bytes",
    ),
    "an output is written past its end": Fault(
        [(PLUGIN, DONE, DONE.replace("        return",
          "        static_cast<float*>(outputs[kFINAL_STATE])[call.sizes.batch * "
          "call.sizes.channels * mAttributes.directions * call.sizes.states] = 0.0F;\n"
          "        return"))],
        ("stateful",), "output 1: written 1 bytes past its end",
    ),
    "an input is written": Fault(
        [(PLUGIN, DONE, DONE.replace("        return",
          "        *static_cast<float*>(const_cast<void*>(inputs[1])) += 1.0F;\n        return"))],
        ("plain",), "enqueue wrote into input 1",
    ),
    "an output is not written": Fault(
        [(PLUGIN, "        bindTensors(call.params, mPositions, inputs, outputs);\n",
          "        bindTensors(call.params, mPositions, inputs, outputs);\n"
          "        call.params.finalState = nullptr;\n")],
        ("plain",), "final_state: value",
    ),
    "an exception leaves": Fault(
        [("trt/trt_log.h", "    catch (std::exception const& problem)\n    {\n"
          "        logError(where, problem.what());",
          "    catch (std::exception const& problem)\n    {\n"
          "        logError(where, problem.what());\n        throw;"),
         (PLUGIN, "        bindTensors(call.params",
          '        throw std::runtime_error("seeded");\n        bindTensors(call.params')],
        ("plain",), "an exception left the plugin in enqueue", status=3,
    ),
    "an output has the wrong type": Fault(
        [(PLUGIN, "outputTypes[kFINAL_STATE] = DataType::kFLOAT;",
          "outputTypes[kFINAL_STATE] = inputTypes[mPositions[kU]];")],
        ("vim-fp16",), "output 1: type 0 was wanted, found 1",
    ),
    "an output has the wrong shape": Fault(
        [(PLUGIN, "outputs[kFINAL_STATE].d[1] = decay.d[0];",
          "outputs[kFINAL_STATE].d[1] = outputs[kY].d[2];")],
        ("vim",), "output 1: shape .* was wanted",
    ),
    "a shape is a constant": Fault(
        [(PLUGIN, "        outputs[kY] = dt;\n",
          "        outputs[kY] = dt;\n        outputs[kY].d[0] = exprBuilder.constant(1);\n")],
        ("vim",), "output 0: shape .* was wanted",
    ),
    "formats are not looked at": Fault(
        [(PLUGIN, " || inOut[pos].desc.format != TensorFormat::kLINEAR)", ")")],
        ("plain",), "type 0, format 1: refusal was wanted",
    ),
    "a type depends on tensors behind it": Fault(
        [(PLUGIN, "        PluginTensorDesc const& desc = inOut[pos].desc;\n"
          "        DataType const rows",
          "        PluginTensorDesc const& desc = inOut[pos].desc;\n"
          "        if (pos == 1 && inOut[2].desc.type != DataType::kFLOAT)\n"
          "        {\n            return false;\n        }\n        DataType const rows")],
        ("plain",), "depends on the tensors behind it",
    ),
    "the timing cache id names no attributes": Fault(
        [(PLUGIN, 'std::string(mambapose_scan_cuda_version()) + " " + mMetadata',
          "mambapose_scan_cuda_version()")],
        ("vim", "plain"), "nodes with different attributes have one timing cache id",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_the_driver_notices(name, tmp_path, driver, kernels):
    fault = FAULTS[name]
    for file, before, after in fault.patches:
        changed = tmp_path / file
        text = (changed if changed.is_file() else CSRC / file).read_text()
        assert text.count(before) == 1, f"{file} has not this text once: {before}"
        changed.parent.mkdir(exist_ok=True)
        changed.write_text(text.replace(before, after))
    done = drive(driver, build_plugin(STANDIN, kernels, tmp_path), *fault.cases)
    assert re.search(f"^complaint: .*({fault.complaint})", done.stdout, re.MULTILINE), done.stdout
    assert done.returncode == fault.status, done.stdout


def layout(headers: Path) -> list[str]:
    """Every size, offset, enumerator, virtual slot and interface name, as the headers give it."""
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Wno-invalid-offsetof")
    compiler = Compiler(flags, system=(headers, STANDIN))
    program = compiler.build("standin_layout", [CSRC / "tests" / "standin_layout.cpp"])
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if not line.startswith("version")]


@needs_real
@pytest.mark.parametrize("headers", REAL, ids=lambda path: path.parent.name)
def test_the_stand_in_is_laid_out_as_the_real_headers(headers):
    if major_of(headers) != LAYOUT_OF:
        pytest.skip(f"the stand-in has the layout of TensorRT {LAYOUT_OF}")
    if platform.machine() != "x86_64":
        pytest.skip("virtual slots are read from pointers to members as x86-64 keeps them")
    found = layout(STANDIN)
    assert len(found) >= 130
    assert found == layout(headers)


@needs_real
@pytest.mark.parametrize("headers", REAL, ids=lambda path: path.parent.name)
def test_the_plugin_lives_with_the_real_headers(headers, driver, kernels):
    """Plugin and driver of the same headers, then each with the stand-in's other half."""
    plugin = build_plugin(headers, kernels)
    real = build_driver(headers)
    pairs = [(real, plugin)]
    if major_of(headers) == LAYOUT_OF:
        pairs += [(driver, plugin), (real, build_plugin(STANDIN, kernels))]
    for program, library in pairs:
        done = drive(program, library)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("source", ["trt_driver.cpp", "trt_driver_run.cpp"])
def test_the_driver_compiles_for_a_gpu(source):
    """The two files that differ there; benchmarks/gpu_check/check.sh runs it where a GPU is."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("no CUDA compiler")
    flags = ("-std=c++17", "-DWITH_CUDA", "-Xcompiler=-Wall,-Wextra,-Werror")
    compiler = Compiler(flags, system=(STANDIN,), program=nvcc, silent=True)
    compiler.object(DRIVER / source)


@pytest.mark.skipif(
    "MAMBAPOSE_TRT_CALIBRATION" not in os.environ,
    reason="MAMBAPOSE_TRT_CALIBRATION names no build of NVIDIA's samples behind the driver",
)
def test_nvidias_own_plugins_live_as_the_driver_leads_them():
    program = Path(os.environ["MAMBAPOSE_TRT_CALIBRATION"]) / "run"
    done = subprocess.run([program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok " in done.stdout
    assert "complaint" not in done.stdout
