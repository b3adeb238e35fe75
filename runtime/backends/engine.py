"""What every backend gives: an Engine, which is one loaded graph with the tensors of the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from mambapose.runtime.errors import MismatchError
from mambapose.runtime.types import Array, GraphSpec, TensorSpec


class Engine(Protocol):
    """A loaded graph. The arrays that ``run`` returns belong to the caller."""

    spec: GraphSpec

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name; EngineError when an input is not as the spec says."""
        ...

    def memory(self) -> dict[str, int]:
        """What is known about this engine's memory, in bytes."""
        ...

    def close(self) -> None:
        """Free what the backend holds; ``run`` may not be called afterwards."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def check_spec(found: GraphSpec, wanted: GraphSpec, where: str) -> None:
    """EngineError unless the tensors of a loaded file are those of the manifest.

    where: what is loaded, for the message. A dimension that is free in the file may be fixed in the
    manifest, and the other way round.
    """
    for side, have, want in (
        ("input", found.inputs, wanted.inputs),
        ("output", found.outputs, wanted.outputs),
    ):
        present = {tensor.name: tensor for tensor in have}
        for tensor in want:
            same = present.pop(tensor.name, None)
            if same is None or not _alike(same, tensor):
                raise MismatchError(
                    f"{where}: {side} {tensor} was wanted, the file has {same or 'none'}; "
                    "export the bundle again with mp-export"
                )
        if present:
            raise MismatchError(
                f"{where}: the file has an extra {side} {next(iter(present))}; "
                "export the bundle again with mp-export"
            )


def _alike(have: TensorSpec, want: TensorSpec) -> bool:
    """Whether two tensors have the same type, rank and fixed dimensions."""
    return (
        have.dtype == want.dtype
        and len(have.shape) == len(want.shape)
        and all(
            isinstance(a, str) or isinstance(b, str) or a == b
            for a, b in zip(have.shape, want.shape, strict=True)
        )
    )
