"""Device presets: what a bundle is built for."""

from __future__ import annotations

from dataclasses import dataclass, field

from mambapose.runtime.errors import TargetError
from mambapose.runtime.types import Size


@dataclass(frozen=True)
class Schedule:
    """Sizes and rhythm of the stages, for a landscape clip; portrait swaps H and W.

    flow_iters: RAFT updates per pair. depth_every, detect_every: frames between runs.
    clip_frames: T of the lifter's window; hop: frames each window contributes, from its middle.
    The defaults weigh time against accuracy, as docs/benchmarks.md and docs/accuracy.md measure it;
    every bundle carries its own.
    """

    flow_size: Size = Size(192, 256)
    depth_size: Size = Size(252, 336)
    pose_size: Size = Size(256, 192)
    flow_iters: int = 12
    depth_every: int = 5
    detect_every: int = 10
    clip_frames: int = 81
    hop: int = 27

    def size(self, field: str) -> Size:
        """The size in the field of that name: ``flow_size``, ``depth_size``, ``pose_size``."""
        found: Size = getattr(self, field)
        return found

    @property
    def lookahead(self) -> int:
        """How many later frames the 3D result of a frame waits for, at most."""
        return self.clip_frames - (self.clip_frames - self.hop) // 2 - 1


@dataclass(frozen=True)
class Target:
    """One device preset. gpu_arch is a CUDA compute capability such as ``sm_87``, or None."""

    name: str
    backend: str
    precision: str
    gpu_arch: str | None = None
    tensorrt: tuple[str, str] | None = None
    aliases: tuple[str, ...] = ()
    schedule: Schedule = field(default_factory=Schedule)


TARGETS: dict[str, Target] = {
    "cpu": Target("cpu", backend="onnxruntime", precision="fp32"),
}


def target_from_name(name: str) -> Target:
    """The preset of that name or alias; TargetError lists the known ones otherwise."""
    for target in TARGETS.values():
        if name == target.name or name in target.aliases:
            return target
    known = ", ".join(sorted(TARGETS))
    raise TargetError(f"target {name!r} is not known; use one of: {known}")
