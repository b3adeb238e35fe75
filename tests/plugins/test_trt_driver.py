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

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "plugins" / "csrc"
DRIVER = CSRC / "trt" / "driver"
STANDIN = CSRC / "tests" / "tensorrt_standin"
CACHE = CSRC.parents[1] / "build" / "trt-driver"
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


def compile_cxx(target: Path, headers: Path, *arguments: str | Path) -> Path:
    """Run g++; the stand-in's CUDA types serve real headers, too."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", f"-isystem{headers}", f"-isystem{STANDIN}"]
    command += [*map(str, arguments), f"-I{CSRC}", "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


def build_driver(headers: Path) -> Path:
    """The driver, built once for each state of its sources."""
    sources = sorted(DRIVER.glob("trt_driver*.cpp"))
    digest = hashlib.sha256(str(headers).encode())
    for source in [*sources, *sorted(DRIVER.glob("*.h")), *sorted(headers.glob("*.h"))]:
        digest.update(source.read_bytes())
    target = CACHE / f"trt_driver-{digest.hexdigest()[:16]}"
    if not target.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        compile_cxx(part, headers, "-Werror", "-O1", *sources, "-ldl").replace(target)
    return target


def compile_sources(folder: Path, headers: Path, sources: Sequence[Path]) -> dict[str, Path]:
    """Objects by the name of their source; headers beside a source come first."""
    own = (f"-I{folder}", "-c", "-fPIC", "-fvisibility=hidden")
    return {
        source.name: compile_cxx(folder / f"{source.stem}.o", headers, *own, source)
        for source in sources
    }


def link_plugin(folder: Path, objects: Iterable[Path], kernels: Path) -> Path:
    """The plugin of these objects with the host build of the kernels."""
    paths = [*objects, kernels, f"-Wl,-rpath,{kernels.parent}"]
    target = folder / "libmambapose_trt.so"
    return compile_cxx(target, STANDIN, "-shared", *paths, "-Wl,--no-undefined", "-ldl")


def build_plugin(folder: Path, headers: Path, kernels: Path) -> Path:
    """The plugin as it is."""
    objects = compile_sources(folder, headers, sorted(CSRC.glob("trt/*.cpp")))
    return link_plugin(folder, objects.values(), kernels)


def drive(driver: Path, plugin: Path, *cases: str) -> subprocess.CompletedProcess[str]:
    """One run of the driver."""
    return subprocess.run(
        [driver, plugin, "--shim", *cases], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def kernels(scans) -> Path:
    """The host build of the CUDA kernels."""
    library: Path = scans.build_shim()
    return library


@pytest.fixture(scope="module")
def driver() -> Path:
    """The driver built with the stand-in."""
    return build_driver(STANDIN)


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> dict[str, Path]:
    """The plugin's objects, built with the stand-in."""
    folder = tmp_path_factory.mktemp("objects")
    return compile_sources(folder, STANDIN, sorted(CSRC.glob("trt/*.cpp")))


@pytest.fixture(scope="module")
def plugin(objects, tmp_path_factory, kernels) -> Path:
    """The plugin, built with the stand-in."""
    return link_plugin(tmp_path_factory.mktemp("plugin"), objects.values(), kernels)


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
def test_the_driver_notices(name, tmp_path, driver, objects, kernels):
    fault = FAULTS[name]
    (tmp_path / "trt").mkdir()
    for source in CSRC.glob("trt/trt_*"):
        shutil.copy(source, tmp_path / "trt")
    for file, before, after in fault.patches:
        text = (tmp_path / file).read_text()
        assert text.count(before) == 1, f"{file} has not this text once: {before}"
        (tmp_path / file).write_text(text.replace(before, after))
    patched = {Path(file).name for file, _, _ in fault.patches}
    if any(file.endswith(".h") for file in patched):
        patched = set(objects)
    sources = [tmp_path / "trt" / name for name in sorted(patched)]
    changed = compile_sources(tmp_path, STANDIN, sources)
    broken = link_plugin(tmp_path, {**objects, **changed}.values(), kernels)
    done = drive(driver, broken, *fault.cases)
    assert re.search(f"^complaint: .*({fault.complaint})", done.stdout, re.MULTILINE), done.stdout
    assert done.returncode == fault.status, done.stdout


def layout(target: Path, headers: Path) -> list[str]:
    """Every size, offset, enumerator, virtual slot and interface name, as the headers give it."""
    source = CSRC / "tests" / "standin_layout.cpp"
    program = compile_cxx(target, headers, "-Wno-invalid-offsetof", source)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if not line.startswith("version")]


@needs_real
@pytest.mark.parametrize("headers", REAL, ids=lambda path: path.parent.name)
def test_the_stand_in_is_laid_out_as_the_real_headers(headers, tmp_path):
    if major_of(headers) != LAYOUT_OF:
        pytest.skip(f"the stand-in has the layout of TensorRT {LAYOUT_OF}")
    if platform.machine() != "x86_64":
        pytest.skip("virtual slots are read from pointers to members as x86-64 keeps them")
    found = layout(tmp_path / "standin", STANDIN)
    assert len(found) >= 130
    assert found == layout(tmp_path / "real", headers)


@needs_real
@pytest.mark.parametrize("headers", REAL, ids=lambda path: path.parent.name)
def test_the_plugin_lives_with_the_real_headers(headers, tmp_path, driver, kernels):
    """Plugin and driver of the same headers, then each with the stand-in's other half."""
    plugin = build_plugin(tmp_path, headers, kernels)
    real = build_driver(headers)
    pairs = [(real, plugin)]
    if major_of(headers) == LAYOUT_OF:
        (tmp_path / "standin").mkdir()
        pairs += [(driver, plugin), (real, build_plugin(tmp_path / "standin", STANDIN, kernels))]
    for program, library in pairs:
        done = drive(program, library)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("source", ["trt_driver.cpp", "trt_driver_run.cpp"])
def test_the_driver_compiles_for_a_gpu(source, tmp_path):
    """The two files that differ there; a machine with a GPU runs it (benchmarks/gpu/check.sh)."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("no CUDA compiler")
    command = [nvcc, "-std=c++17", "-DWITH_CUDA", "-Xcompiler=-Wall,-Wextra,-Werror", "-c"]
    command += [f"-I{CSRC}", "-isystem", str(STANDIN)]
    command += [str(DRIVER / source), "-o", str(tmp_path / "driver.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


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
