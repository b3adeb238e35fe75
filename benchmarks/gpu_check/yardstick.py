"""mamba-ssm's own selective scan, built from its source distribution, as a model uses it.

Their files are compiled unchanged, with the flags of their setup, for this GPU alone and only for
the types that are timed: files made here name those, and refuse the others. Nothing of it is kept
in this repository.

The kernel wants channels first, B and C as (B, G, N, L), and walks forwards only. What a model
adds around it is timed with it:

- pair (Vim): B and C of each direction are turned, (u, z) is flipped in one copy, two scans run,
  the second result is flipped and added;
- cross scan (VMamba): u is turned and flipped into K copies, one scan runs over K groups, the
  results are flipped and turned back and summed.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mambapose.benchmarks.gpu_check.shapes import Shape, inputs
from mambapose.runtime.errors import EngineError

PREFIX = "csrc/selective_scan/"
BINDING = "selective_scan.cpp"
FORWARD_TYPES = {"float": True, "at::Half": True, "at::BFloat16": False}
BACKWARD_TYPES = {"float": True, "at::Half": False, "at::BFloat16": False}
CUDA_FLAGS = (
    "-O3", "-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT16_OPERATORS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT162_OPERATORS__", "-U__CUDA_NO_BFLOAT162_CONVERSIONS__",
    "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math",
)  # fmt: skip


@dataclass(frozen=True)
class MambaSsm:
    """The built extension and the version of its source distribution."""

    module: Any
    version: str

    def scan(self, *arguments: Any) -> Tensor:
        """y from u, delta, A, B, C, D, z, delta_bias; gated when z is given."""
        results = self.module.fwd(*arguments, True)
        gated: Tensor = results[2] if arguments[6] is not None else results[0]
        return gated


def unpack(archive: Path, folder: Path) -> tuple[Path, str]:
    """(folder of their kernel sources, version). Raises EngineError for another archive."""
    wanted = "a source distribution of mamba-ssm with csrc/selective_scan was wanted"
    try:
        with tarfile.open(archive) as file:
            found = [m for m in file.getmembers() if m.isfile() and PREFIX in m.name]
            if not any(m.name.endswith(BINDING) for m in found):
                raise EngineError(
                    f"{wanted}, {archive} has none (2.2.4 has none, 2.3.2.post1 has it)"
                )
            folder.mkdir(parents=True, exist_ok=True)
            for member in found:
                data = file.extractfile(member)
                assert data is not None
                (folder / Path(member.name).name).write_bytes(data.read())
    except (OSError, tarfile.TarError) as err:
        raise EngineError(f"{wanted}, {archive} cannot be read: {err}") from err
    return folder, found[0].name.split("/")[0].removeprefix("mamba_ssm-")


def instantiations(folder: Path) -> list[Path]:
    """Files, made here, that name the timed types and refuse the others."""
    written = []
    for way, types in (("fwd", FORWARD_TYPES), ("bwd", BACKWARD_TYPES)):
        parameters = "SSMParamsBase" if way == "fwd" else "SSMParamsBwd"
        function = f"selective_scan_{way}_cuda"
        for index, kind in enumerate(name for name, built in types.items() if built):
            path = folder / f"timed_{way}_{index}.cu"
            path.write_text(
                f'#include "selective_scan_{way}_kernel.cuh"\n'
                f"template void {function}<{kind}, float>({parameters}& params, cudaStream_t);\n"
            )
            written.append(path)
        refused = [(kind, "float") for kind, built in types.items() if not built]
        refused += [(kind, "c10::complex<float>") for kind in types]
        path = folder / f"refused_{way}.cu"
        path.write_text(
            "#include <c10/util/BFloat16.h>\n#include <c10/util/Half.h>\n"
            "#include <c10/util/complex.h>\n#include <cuda_runtime.h>\n#include <stdexcept>\n"
            '#include "selective_scan.h"\n'
            f"template <typename I, typename W>\nvoid {function}({parameters}&, cudaStream_t)\n"
            '{\n    throw std::runtime_error("this type was not built for the comparison");\n}\n'
            + "".join(
                f"template void {function}<{kind}, {weight}>({parameters}&, cudaStream_t);\n"
                for kind, weight in refused
            )
        )
        written.append(path)
    return written


def build(archive: Path, folder: Path, capability: int, nvcc: Path) -> MambaSsm:
    """Their extension, compiled into the folder (about a minute on several cores)."""
    sources, version = unpack(archive, folder / "selective_scan")
    os.environ.setdefault("CUDA_HOME", str(nvcc.resolve().parents[1]))
    from torch.utils import cpp_extension  # looks for CUDA_HOME as it is imported

    os.environ["TORCH_CUDA_ARCH_LIST"] = f"{capability // 10}.{capability % 10}"
    try:
        module = cpp_extension.load(
            "selective_scan_cuda",
            [str(path) for path in (sources / BINDING, *instantiations(sources))],
            extra_cflags=["-O3"],
            extra_cuda_cflags=list(CUDA_FLAGS),
            build_directory=str(folder),
        )
    except (RuntimeError, OSError, ImportError) as err:
        reason = str(err).strip().splitlines()[0]
        raise EngineError(f"mamba-ssm {version} cannot be built here: {reason}") from err
    return MambaSsm(module, version)


def _rows_first(rows: Tensor) -> Tensor:
    return rows.transpose(1, 2).contiguous()


def _part(tensor: Tensor | None, k: int, size: int) -> Tensor:
    assert tensor is not None
    return tensor[..., k * size : (k + 1) * size]


def model_call(
    theirs: MambaSsm, shape: Shape, dtype: torch.dtype, seed: int = 0
) -> Callable[[], Tensor]:
    """The scan with the copies a model makes around it; returns y as (B, D, L)."""
    x = inputs(shape, dtype, seed)
    return _pair_call(theirs, shape, x) if shape.grid is None else _cross_call(theirs, shape, x)


def _pair_call(theirs: MambaSsm, shape: Shape, x: dict[str, Any]) -> Callable[[], Tensor]:
    size, states = shape.D, shape.N
    u, dt = ([_rows_first(_part(x[name], k, size)) for k in (0, 1)] for name in ("u", "dt"))
    u[1], dt[1] = u[1].flip(-1), dt[1].flip(-1)  # made in this order by the model
    gate = _rows_first(x["z"])
    both = torch.cat([u[0], gate], 1)  # what a model flips: the halves of one projection
    rows = [[_part(x[name], k, states) for name in ("B", "C")] for k in (0, 1)]
    rows[1] = [tensor.flip(1) for tensor in rows[1]]
    decay, skip, bias = ([x[n][k * size : (k + 1) * size] for k in (0, 1)]
                         for n in ("A", "D", "dt_bias"))  # fmt: skip

    def one(k: int, z: Tensor) -> Tensor:
        matrices = [_rows_first(tensor).unsqueeze(1) for tensor in rows[k]]
        return theirs.scan(u[k], dt[k], decay[k], *matrices, skip[k], z, bias[k])

    def call() -> Tensor:
        flipped = both.flip(-1)
        return one(0, gate) + one(1, flipped[:, size:]).flip(-1)

    return call


def _cross_call(theirs: MambaSsm, shape: Shape, x: dict[str, Any]) -> Callable[[], Tensor]:
    walked = _visited(shape, x)
    scan = _one_launch(theirs, shape, x, walked)
    image = _rows_first(x["u"])
    half = shape.K // 2
    assert shape.grid is not None
    height, width = shape.grid
    others = x["order"][2:half].long()  # maps that no transpose makes: gathered
    back = others.argsort(1)

    def turned(rows: Tensor, first: int, second: int) -> Tensor:
        return rows.view(shape.B, shape.D, first, second).transpose(2, 3).flatten(2)

    def call() -> Tensor:
        maps = [image, turned(image, height, width), *(image[:, :, row] for row in others)]
        copies = torch.stack(maps, 1)
        copies = torch.cat([copies, copies.flip(-1)], 1).flatten(1, 2)
        found = scan(copies).view(shape.B, shape.K, shape.D, shape.L)
        summed = found[:, :half] + found[:, half:].flip(-1)
        y = summed[:, 0] + turned(summed[:, 1], width, height)
        for index, row in enumerate(back):
            y = y + summed[:, 2 + index][:, :, row]
        return y

    return call


def _visited(shape: Shape, x: dict[str, Any]) -> Tensor:
    """(K, L) the token visited at each step, after the reverse flags."""
    rows = x["order"]
    if rows is None:
        rows = torch.arange(shape.L, device=x["u"].device).expand(shape.K, -1)
    flipped = [row.flip(0) if flag else row for row, flag in zip(rows, shape.reverse, strict=True)]
    return torch.stack(flipped).long()


def _walk(rows: Tensor, walked: Tensor, columns: int) -> Tensor:
    """Rows (B, L, K*columns) as (B, K, columns, L), each direction in its own order."""
    parts = [rows[:, tokens, k * columns : (k + 1) * columns] for k, tokens in enumerate(walked)]
    return torch.stack([_rows_first(part) for part in parts], 1)


def _one_launch(
    theirs: MambaSsm, shape: Shape, x: dict[str, Any], walked: Tensor
) -> Callable[..., Tensor]:
    """All directions as channel groups of one launch; dt, B and C are already in walking order."""
    dt = _walk(x["dt"], walked, shape.D).flatten(1, 2)
    matrices = [_walk(x[name], walked, shape.N) for name in ("B", "C")]

    def scan(u: Tensor, z: Tensor | None = None) -> Tensor:
        return theirs.scan(u, dt, x["A"], *matrices, x["D"], z, x["dt_bias"])

    return scan


def bare_call(
    theirs: MambaSsm, shape: Shape, dtype: torch.dtype, seed: int = 0
) -> Callable[[], Tensor]:
    """One launch over all directions, whose inputs are already flipped, turned and copied."""
    x = inputs(shape, dtype, seed)
    walked = _visited(shape, x)
    wide = x["u"] if shape.grid is None else x["u"].repeat(1, 1, shape.K)  # type: ignore[union-attr]
    assert wide is not None
    u = _walk(wide, walked, shape.D).flatten(1, 2)
    gate = x["z"]
    z = None if gate is None else _walk(gate.repeat(1, 1, shape.K), walked, shape.D).flatten(1, 2)
    scan = _one_launch(theirs, shape, x, walked)
    return lambda: scan(u, z)


def training_call(theirs: MambaSsm, shape: Shape) -> Callable[[], Any]:
    """Their forward and backward kernels, one launch each over all directions, without copies."""
    x = inputs(shape, torch.float32)
    walked = _visited(shape, x)
    wide, gate = x["u"], x["z"]
    assert wide is not None
    assert gate is not None
    u = _walk(wide, walked, shape.D).flatten(1, 2)
    z = _walk(gate.repeat(1, 1, shape.K), walked, shape.D).flatten(1, 2)
    dt = _walk(x["dt"], walked, shape.D).flatten(1, 2)  # type: ignore[arg-type]
    rows = [_walk(x[name], walked, shape.N) for name in ("B", "C")]  # type: ignore[arg-type]
    weight = torch.randn_like(u)

    def call() -> Any:
        front = (u, dt, x["A"], *rows, x["D"], z, x["dt_bias"])
        out, states, _ = theirs.module.fwd(*front, True)
        return theirs.module.bwd(*front, weight, states, out, None, True, False)

    return call
