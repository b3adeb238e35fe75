"""The CUDA kernels against float64: forward in all tactics and types, gradients, properties.

Memory the kernels write to is filled with NaN first, and their workspace with ones, so that
nothing they leave out can pass. Every launch is repeated and must give the same bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambapose.benchmarks.gpu_check.cases import FOUR, PAIR, Case, arguments, placed
from mambapose.plugins import torch_cuda
from mambapose.plugins.native_cuda import TACTICS
from mambapose.plugins.reference import selective_scan_reference
from mambapose.plugins.scan_node import INPUTS
from mambapose.plugins.torch_loop import scan_loop
from mambapose.plugins.torch_op import selective_scan
from mambapose.runtime.errors import EngineError

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LIMITS = {"fp32": 2e-6, "fp16": 1.5e-3, "bf16": 1.2e-2}
STATE_LIMIT = 5e-6
GRADIENT_LIMITS = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-2}
Tensors = dict[str, Tensor | None]


@dataclass
class Result:
    """One comparison: the worst error relative to the largest value, and every failure."""

    check: str
    limit: float
    cases: int = 0
    refused: int = 0
    worst: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether something was compared and all of it kept within the limit."""
        return self.cases > 0 and not self.failures

    def add(self, error: float, where: str, limit: float | None = None) -> None:
        """Count one comparison; an error that is not a number is a failure."""
        limit = self.limit if limit is None else limit
        self.cases += 1
        self.worst = max(self.worst, error) if error == error else float("inf")
        if not error <= limit:
            self.failures.append(f"{where}: error {error:.2e}, limit {limit:.1e}")

    def refuse(self, problem: Exception, where: str) -> None:
        """Count a call that a tactic refuses; for the automatic choice that is a failure."""
        self.refused += 1
        if self.check.endswith("auto"):
            self.failures.append(f"{where}: {problem}")

    def row(self) -> dict[str, Any]:
        """The fields for the JSON lines."""
        return {"check": self.check, "cases": self.cases,
                "refused": self.refused, "worst": self.worst,
                "limit": self.limit, "failures": len(self.failures), "ok": self.ok}  # fmt: skip


def case_seed(seed: int, case: Case) -> int:
    """The seed of one case, so that the case can be run again without the others."""
    return zlib.crc32(f"{seed} {case}".encode())


def largest_error(found: Tensor, wanted: NDArray[Any], dtype: torch.dtype) -> float:
    """The largest difference relative to the largest wanted value; NaN when a value is NaN.

    A value beyond the range of the type counts as the type's largest value, and a difference of one
    step of its smallest numbers counts as none.
    """
    largest = torch.finfo(dtype).max
    values = found.detach().double().cpu().numpy().clip(-largest, largest)
    wanted = wanted.clip(-largest, largest)
    if values.shape != wanted.shape:
        return float("nan")
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    scale = max(float(np.abs(wanted).max(initial=0.0)), 1e-30)
    return float(np.maximum(np.abs(values - wanted) - step, 0.0).max(initial=0.0)) / scale


def reference(tensors: Tensors, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """(y, final_state) of the oracle, computed from the values that the tensors hold."""
    arrays = {
        name: None
        if t is None
        else t.cpu().numpy()
        if name == "order"
        else t.double().cpu().numpy()
        for name, t in tensors.items()
    }
    return selective_scan_reference(**arrays, **options)  # type: ignore[arg-type]


def poison(bound: torch_cuda.BoundScan) -> None:
    """Fill the outputs of a call with NaN and every bit of its workspace with one."""
    bound.y.fill_(float("nan"))
    if bound.final_state is not None:
        bound.final_state.fill_(float("nan"))
    bound.workspace.fill_(255)


def bits(bound: torch_cuda.BoundScan) -> list[Tensor]:
    """Copies of both results as integers, so that NaN equals NaN when their bits do."""
    results = [bound.y, *([] if bound.final_state is None else [bound.final_state])]
    kinds = {2: torch.int16, 4: torch.int32}
    return [result.clone().view(kinds[result.element_size()]) for result in results]


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether all bits agree."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def forward(
    cases: Iterable[Case], dtype_name: str, device: str, seed: int,
    tactics: Iterable[str] = tuple(TACTICS),
) -> list[Result]:  # fmt: skip
    """Every case in every tactic, against the oracle and against a second launch."""
    dtype, limit = TYPES[dtype_name], LIMITS[dtype_name]
    results = {name: Result(f"forward {dtype_name} {name}", limit) for name in tactics}
    for case in cases:
        rng = np.random.default_rng(case_seed(seed, case))
        tensors = arguments(case, rng, dtype)
        wanted = reference(tensors, case.options)
        on_device = placed(tensors, case.layout, device)
        for name, result in results.items():
            where = f"{dtype_name} {name}, seed {seed}, {case}"
            try:
                bound = torch_cuda.bind_scan(on_device, case.options, tactic=name)
            except EngineError as problem:
                result.refuse(problem, where)
                continue
            _compare(bound, wanted, result, where)
    return list(results.values())


def _compare(
    bound: torch_cuda.BoundScan, wanted: tuple[Any, Any], result: Result, where: str
) -> None:
    runs = []
    for _ in range(2):
        poison(bound)
        bound.launch()
        runs.append(bits(bound))
    if not same_bits(*runs):
        result.failures.append(f"{where}: a second launch gave other bits")
    assert bound.final_state is not None
    state_error = largest_error(bound.final_state, wanted[1], torch.float32)
    if not state_error <= STATE_LIMIT:
        result.failures.append(
            f"{where}: final state: error {state_error:.2e}, limit {STATE_LIMIT:.1e}"
        )
    result.add(largest_error(bound.y, wanted[0], bound.y.dtype), where)


GRADIENT_CASES = (
    Case(), PAIR, FOUR, Case(L=1), Case(L=2, N=1, D=5), Case(L=130, D=40),
    Case(optional=""), Case(optional="Dzbs", B=2, L=50), Case(softplus=False),
    Case(K=2, G=2, reverse=(1, 0), optional="s"), Case(K=3, order="rows", L=70, merge="sum"),
    Case(segment=8, L=64, K=2, reverse=(0, 1)), Case(segment=7, L=60, order="shared"),
    Case(constant="B"), Case(constant="C", K=2), Case(constant="BC", optional="z"),
    Case(N=3, D=17), Case(N=64, L=20), Case(N=256, L=12, D=4), Case(K=2, wide_u=True, B=3, L=20),
    Case(G=16, L=20), Case(layout="slices", B=2), Case(layout="offset"),
    Case(L=300, D=8, N=16, K=2, reverse=(0, 1), merge="sum"),
)  # fmt: skip


def exact_gradients(
    tensors: Tensors, options: Mapping[str, Any], grads: Sequence[Tensor], names: Sequence[str]
) -> list[Tensor]:
    """Gradients by autograd through the plain loop in float64 on the CPU."""
    leaves: Tensors = {
        name: t if t is None or name == "order" else t.detach().cpu().double()
        for name, t in tensors.items()
    }
    roots = []
    for name in names:
        leaf = leaves[name]
        assert leaf is not None
        roots.append(leaf.requires_grad_())
    outputs = scan_loop(*leaves.values(), *options.values())  # type: ignore[arg-type]
    pairs = [(o, g.double().cpu()) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    return list(
        torch.autograd.grad(
            [o for o, _ in pairs], roots, [g for _, g in pairs], materialize_grads=True
        )
    )


def _result_shapes(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    columns = case.D if case.merge == "sum" else case.K * case.D
    return (case.B, case.L, columns), (case.B, case.K * case.D, case.N)


def gradients(cases: Iterable[Case], dtype_name: str, device: str, seed: int) -> Result:
    """The check of all gradients of a weighted sum of both results, run twice.

    After that one of the gradients is computed alone and must have the same bits.
    """
    result = Result(f"gradients {dtype_name}", GRADIENT_LIMITS[dtype_name])
    for case in cases:
        rng = np.random.default_rng(case_seed(seed, case))
        tensors = arguments(case, rng, TYPES[dtype_name])
        names = [n for n in INPUTS if n != "order" and tensors[n] is not None]
        grads = [torch.from_numpy(rng.standard_normal(s)).float() for s in _result_shapes(case)]
        wanted = exact_gradients(tensors, case.options, grads, names)
        x = placed(tensors, case.layout, device)
        grad_y, grad_state = (grad.to(device) for grad in grads)
        found = torch_cuda.scan_backward(grad_y, grad_state, x, case.options, names)
        again = torch_cuda.scan_backward(grad_y, grad_state, x, case.options, names)
        one = names[int(rng.integers(len(names)))]
        alone = torch_cuda.scan_backward(grad_y, grad_state, x, case.options, [one])
        for name, exact, first, second in zip(names, wanted, found, again, strict=True):
            where = f"{dtype_name}, seed {seed}, {case}: gradient of {name}"
            result.add(largest_error(first, exact.numpy(), first.dtype), where)
            same = torch.equal(first, second) and (name != one or torch.equal(first, alone[0]))
            if not same:
                result.failures.append(f"{where}: a second call gave other bits")
    return result


def properties(device: str, seed: int) -> list[Result]:
    """The checks across calls: states carry over, NaN stays in its channel, graphs replay."""
    checks: list[Callable[[str, int], Result]] = [split_lengths, strangers]
    if device != "cpu":
        checks += [torch_operator, graph_replay]
    return [check(device, seed) for check in checks]


def split_lengths(device: str, seed: int) -> Result:
    """The check that a length cut in two anywhere, its state carried over, equals one pass."""
    result = Result("length split anywhere", 1e-6)
    case = Case(L=33, D=20, optional="Dz")
    x = placed(arguments(case, np.random.default_rng(seed), torch.float32), "dense", device)
    whole = torch_cuda.scan(x, case.options)
    for cut in range(case.L + 1):
        parts, state = [], None
        for piece in (slice(0, cut), slice(cut, case.L)):
            part = {n: t[:, piece] if t is not None and t.ndim == 3 else t for n, t in x.items()}
            y, state = torch_cuda.scan({**part, "initial_state": state}, case.options)
            parts.append(y)
        for name, found, wanted in (
            ("y", torch.cat(parts, 1), whole[0]),
            ("state", state, whole[1]),
        ):
            assert found is not None
            error = largest_error(found, wanted.double().cpu().numpy(), torch.float32)
            result.add(error, f"cut at {cut}, {name}")
    return result


def strangers(device: str, seed: int) -> Result:
    """The check that NaN and infinity in one channel leave the bits of all others unchanged."""
    result = Result("NaN stays in its channel", 0.0)
    for value in (float("nan"), float("inf"), float("-inf")):
        for tactic in TACTICS:
            case = Case(K=2, reverse=(0, 1), wide_u=True, L=70, D=20, optional="D")
            x = placed(arguments(case, np.random.default_rng(seed), torch.float32), "dense", device)
            clean = torch_cuda.bind_scan(x, case.options, tactic=tactic)
            clean.launch()
            u = x["u"]
            assert u is not None
            u[0, 30, 7] = value
            struck = torch_cuda.bind_scan(x, case.options, tactic=tactic)
            struck.launch()
            others = [c for c in range(2 * case.D) if c != 7]
            same = torch.equal(clean.y[..., others], struck.y[..., others])
            lost = bool(struck.y[0, 30:, 7].isfinite().any())
            earlier = torch.equal(clean.y[0, :30, 7], struck.y[0, :30, 7])
            result.add(0.0 if same and earlier and not lost else 1.0, f"{value}, tactic {tactic}")
    return result


def torch_operator(device: str, seed: int) -> Result:
    """The check that the torch operator runs these kernels and autograd goes through them."""
    result = Result("torch operator", GRADIENT_LIMITS["fp32"])
    for case in GRADIENT_CASES[:5]:
        tensors = arguments(case, np.random.default_rng(case_seed(seed, case)), torch.float32)
        x = placed(tensors, "dense", device)
        names = [n for n, t in x.items() if n != "order" and t is not None]
        leaves = {n: t if t is None or n == "order" else t.requires_grad_() for n, t in x.items()}
        results = selective_scan(**leaves, **case.options)  # type: ignore[arg-type]
        plain = torch_cuda.scan(x, case.options)
        if not all(torch.equal(a, b) for a, b in zip(results, plain, strict=True)):
            result.failures.append(f"{case}: torch does not run these kernels")
        grads = [torch.ones_like(tensor) for tensor in plain]
        wanted = exact_gradients(tensors, case.options, grads, names)
        found = torch.autograd.grad(results, [leaves[n] for n in names], grads)  # type: ignore[arg-type]
        for name, gradient, exact in zip(names, found, wanted, strict=True):
            error = largest_error(gradient, exact.numpy(), torch.float32)
            result.add(error, f"seed {seed}, {case}: gradient of {name}")
    return result


def graph_replay(device: str, seed: int) -> Result:
    """The check that a captured call gives a plain call's bits when replayed on new values.

    The new values lie in the same memory.
    """
    result = Result("CUDA graph replay", 0.0)
    for case in (PAIR, FOUR, Case(L=2049, D=128)):
        for dtype_name, dtype in TYPES.items():
            for name in TACTICS:
                rng = np.random.default_rng(case_seed(seed, case))
                x = placed(arguments(case, rng, dtype), "dense", device)
                bound = torch_cuda.bind_scan(x, case.options, tactic=name)
                bound.launch()  # loads the kernels, which a capture may not do
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    bound.launch()
                for key, fresh in placed(arguments(case, rng, dtype), "dense", device).items():
                    if fresh is not None and key != "order":
                        x[key].copy_(fresh)  # type: ignore[union-attr]
                bound.launch()
                plain = bits(bound)
                poison(bound)
                graph.replay()
                same = same_bits(plain, bits(bound))
                result.add(0.0 if same else 1.0, f"{case}, {dtype_name}, {name}")
    return result
