"""The scan as a node of an ONNX graph: its names, and the signature a function body is made for."""

from __future__ import annotations

from dataclasses import dataclass

DOMAIN = "mambapose"
OPERATOR = "SelectiveScan"
INPUTS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "order", "initial_state")
OUTPUTS = ("y", "final_state")


@dataclass(frozen=True)
class Signature:
    """What a function body is made for: the attributes of a scan node and the forms of its inputs.

    optional: the optional inputs that the node has; u_shared: u is (B, L, D); b_constant,
    c_constant: B, C are (K*D, N); order_rows: order is (K, L); half: rows are float16.
    """

    directions: int
    groups: int
    reverse: tuple[int, ...]
    delta_softplus: bool
    segment: int
    merge: str
    optional: frozenset[str]
    u_shared: bool
    b_constant: bool
    c_constant: bool
    order_rows: bool
    half: bool

    @property
    def input_count(self) -> int:
        """How many inputs the function has: as many as the node, up to the last one present."""
        return max(5, *(INPUTS.index(name) + 1 for name in self.optional), 0)

    @property
    def overload(self) -> str:
        """The name that tells this body from others, the same for equal signatures."""
        words = [f"k{self.directions}", f"g{self.groups}", "r" + "".join(map(str, self.reverse))]
        words += [self.merge, *(name for name in INPUTS if name in self.optional)]
        flags = {
            "softplus": self.delta_softplus,
            f"segment{self.segment}": self.segment > 0,
            "wide_u": not self.u_shared,
            "constant_b": self.b_constant,
            "constant_c": self.c_constant,
            "order_rows": self.order_rows,
            "half": self.half,
        }
        return "_".join([*words, *(word for word, is_set in flags.items() if is_set)])
