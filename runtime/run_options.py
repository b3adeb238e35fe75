"""What a run asks for, and which of it no run can have."""

from __future__ import annotations

from dataclasses import dataclass

from mambapose.runtime.errors import EngineError
from mambapose.runtime.stages.joints import BODY_HEIGHTS

HEIGHTS_M = (0.3, 3.0)  # of a person


@dataclass(frozen=True)
class RunOptions:
    """What a run asks for. A field that is None takes the value of the bundle's schedule.

    height: the person's height in metres, for metric 3D. lookahead: how many later frames the 3D
    may wait for, 0 for live. detect: whether a detector finds people, where there is one; otherwise
    one person is searched. max_people: how many people are followed at once with a detector;
    person: the only one who is reported, ``largest``, ``centre`` or an id.
    trained: whether pose2d's scores mean anything; lift_unit: the unit of the lifter's 3D joints.
    """

    flow: bool = True
    depth: bool = True
    detect: bool = True
    depth_every: int | None = None
    detect_every: int | None = None
    flow_iters: int | None = None
    height: float | None = None
    lookahead: int | None = None
    max_people: int | None = None
    person: str | None = None
    trained: bool = True
    lift_unit: str = BODY_HEIGHTS

    def __post_init__(self) -> None:
        """EngineError for a number that no run can have."""
        least = {"depth_every": 1, "detect_every": 1, "flow_iters": 1, "max_people": 1}
        for name, low in {**least, "lookahead": 0}.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= low):
                raise EngineError(f"{name} of at least {low} was wanted, found {value!r}")
        least_m, most_m = HEIGHTS_M
        known = self.height is None or isinstance(self.height, (int, float))
        if not known or (self.height is not None and not least_m <= self.height <= most_m):
            raise EngineError(
                f"a body height of {least_m} to {most_m} m was wanted, found {self.height!r}; "
                "give metres"
            )
