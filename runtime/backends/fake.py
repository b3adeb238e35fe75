"""An engine that is a plain function: for tests, examples and measuring the host side alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from mambapose.runtime.errors import RunError
from mambapose.runtime.types import Array, GraphSpec


class FakeEngine:
    """An engine that calls ``function`` (inputs by name -> outputs by name) and checks both sides.

    calls: how often it ran. EngineError: an input or an output is not as the spec says.
    """

    def __init__(
        self, spec: GraphSpec, function: Callable[[Mapping[str, Array]], dict[str, Array]]
    ) -> None:
        self.spec = spec
        self.calls = 0
        self.function = function
        self._open = True

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of the function, after its inputs and outputs were checked."""
        if not self._open:
            raise RunError(f"graph {self.spec.name}: the engine is closed; load it again")
        self.spec.check_inputs(inputs)
        outputs = self.function(inputs)
        if wrong := {spec.name for spec in self.spec.outputs} ^ set(outputs):
            raise RunError(
                f"graph {self.spec.name}: the function's outputs differ from the spec in "
                f"{sorted(wrong)}"
            )
        for spec in self.spec.outputs:
            spec.check(outputs[spec.name])
        self.calls += 1
        return outputs

    def memory(self) -> dict[str, int]:
        """An empty dict: a function holds no weights."""
        return {}

    def close(self) -> None:
        """End the engine; a later ``run`` is refused."""
        self._open = False

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
