"""What ``mp-check`` says of the TensorRT plugin, on a machine that tests change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mambapose.runtime.check import plugin as check_plugin
from mambapose.runtime.check.plugin import (
    build_plugin,
    find_compiler,
    find_device,
    plugin_findings,
    plugin_folder,
)
from mambapose.runtime.errors import EngineError

BUILD = """#!/bin/sh
echo run >>"$LOG"
{body}
mkdir -p "$1"
echo "-- mambapose: GPU kernels built by nvcc 12.6 for architectures 87" >"$1/configure.log"
echo "-- mambapose: TensorRT plugin built with the headers of 10.3.0 in /usr" >>"$1/configure.log"
: >"$1/libmambapose_trt.so"
if [ -n "$PLUGIN_DRIVER" ]; then
    printf '#!/bin/sh\\n%s\\n' '{driver}' >"$1/trt_driver"
    chmod +x "$1/trt_driver"
fi
"""


class Machine:
    """A machine with an nvcc, a device, sources and a cache, any of which a test may take away."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.nvcc, self.device = root / "nvcc", root / "nvidiactl"
        for path in (self.nvcc, self.device):
            path.write_text("")
            path.chmod(0o755)
        self.log = root / "log"
        (root / "source" / "cmake").mkdir(parents=True)
        (root / "source" / "csrc").mkdir()
        (root / "source" / "csrc" / "scan.cu").write_text("// kernel")
        self.script()
        monkeypatch.setattr(check_plugin, "installed_folders", lambda: iter([root / "source"]))
        monkeypatch.setattr(check_plugin, "DEVICES", (str(self.device),))
        monkeypatch.setenv("CUDACXX", str(self.nvcc))
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        monkeypatch.setenv("LOG", str(self.log))

    def script(self, body: str = "", driver: str = "echo 12 of 12 right") -> None:
        text = BUILD.format(body=body, driver=driver)
        (self.root / "source" / "cmake" / "build_plugin.sh").write_text(text)

    def builds(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_with_compiler_and_device_the_plugin_is_compiled_and_driven(machine: Machine) -> None:
    compiling, compiled, driven, unproved = plugin_findings()
    assert compiling.ok is None
    assert "compiling with" in compiling.text
    assert compiled.ok is True
    assert "nvcc 12.6 for architectures 87" in compiled.text
    assert "headers of 10.3.0" in compiled.text
    assert driven.ok is True
    assert f"driven on {machine.device}: 12 of 12 right" in driven.text
    assert unproved.ok is None
    assert "no engine was built" in unproved.text


def test_the_build_is_kept_until_a_source_changes(machine: Machine) -> None:
    list(plugin_findings())
    assert "compiling with" not in " ".join(finding.text for finding in plugin_findings())
    assert machine.builds() == 1
    (machine.root / "source" / "csrc" / "scan.cu").write_text("// another kernel")
    list(plugin_findings())
    assert machine.builds() == 2


def test_a_build_without_the_driver_is_completed(machine: Machine) -> None:
    folder = plugin_folder(machine.nvcc)
    build_plugin(machine.nvcc, folder, with_driver=False)
    assert not (folder / "trt_driver").exists()
    list(plugin_findings())
    assert machine.builds() == 2
    assert (folder / "trt_driver").exists()


def test_without_a_device_nothing_is_compiled_unless_asked(machine: Machine) -> None:
    machine.device.unlink()
    (said,) = plugin_findings()
    assert said.ok is None
    assert "neither compiled nor run; mp-check --plugin compiles it anyway" in said.text
    assert machine.builds() == 0
    _, compiled, unproved = plugin_findings(force=True)
    assert (compiled.ok, unproved.ok) == (True, None)
    assert "not run: no NVIDIA device" in unproved.text


@pytest.mark.parametrize(("force", "ok"), [(False, None), (True, False)])
def test_without_nvcc_it_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, force: bool, ok: bool | None
) -> None:
    monkeypatch.setattr(check_plugin, "find_compiler", lambda: None)
    (said,) = plugin_findings(force)
    assert said.ok is ok
    assert "no nvcc" in said.text
    assert "neither compiled nor run" in said.text


def test_a_plugin_that_does_not_compile_fails_with_the_sentence_of_the_build(
    machine: Machine,
) -> None:
    machine.script(
        body="echo 'mambapose: TensorRT 10.3 or newer was wanted, found 8.5.2' >&2; exit 1"
    )
    _, failed = plugin_findings()
    assert failed.ok is False
    assert failed.text == "TensorRT 10.3 or newer was wanted, found 8.5.2"


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (
            "echo complaint: vim: y differs; echo 11 of 12 right; exit 1",
            "complaint: vim: y differs",
        ),
        ("kill -SEGV $$", "found nothing (exit status -11)"),
    ],
)
def test_a_plugin_that_is_wrong_on_this_gpu_fails(machine: Machine, driver: str, said: str) -> None:
    machine.script(driver=driver)
    _, compiled, failed = plugin_findings()
    assert (compiled.ok, failed.ok) == (True, False)
    assert said in failed.text


def test_a_driver_that_hangs_is_ended(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_plugin, "DRIVE_SECONDS", 0.2)
    machine.script(driver="exec sleep 30")
    *_, failed = plugin_findings()
    assert failed.ok is False
    assert "an end within 0.2 s was wanted" in failed.text


def test_an_installation_without_sources_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_plugin, "installed_folders", lambda: iter([machine.root / "none"]))
    (failed,) = plugin_findings()
    assert failed.ok is False
    assert "sources of the plugin were wanted" in failed.text


def test_a_script_that_cannot_start_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="a program that starts was wanted"):
        check_plugin._run(["/no/such/program"], dict(os.environ), 5)


def test_compiler_and_device_are_looked_for_where_they_are(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_compiler() == machine.nvcc
    assert find_device() == str(machine.device)
    monkeypatch.setenv("CUDACXX", str(machine.root / "absent"))
    assert find_compiler() is None
    machine.device.unlink()
    assert find_device() is None
