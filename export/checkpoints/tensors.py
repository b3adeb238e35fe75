"""What a pickle says of its tensors, and the tensors made of it once it was found possible.

Reading the pickle makes descriptions, of a few bytes each whatever they claim. Only those of the
state dict that was asked for become tensors, after their claim was held against the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mambapose.export.checkpoints.pickles import Global, Inert

if TYPE_CHECKING:
    import torch

# Bytes of a tensor that repeats its elements (a stride of 0); no network expands more.
MAX_REPEATED = 64 << 20
MAX_SIDES = 32
MAX_NUMBER = 1 << 62


@dataclass(frozen=True)
class Storage:
    """Where a tensor's elements lie. dtype: as torch names it, ``uint8`` for untyped bytes."""

    key: str
    dtype: str
    count: int

    def __post_init__(self) -> None:
        if not (isinstance(self.key, str) and _is_number(self.count)):
            raise ValueError("the pickle describes a storage by what is no key and size")


@dataclass
class Described:
    """A tensor as the pickle describes it.

    odd: the layout that is not read here, such as ``sparse``; then the rest is empty.
    """

    storage: Storage | None = None
    offset: int = 0
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dtype: str = ""
    odd: str = ""

    def claim(self) -> int:
        """The number of its elements; those of impossible sizes are not counted to the end."""
        count = 0 if 0 in self.size else 1
        for side in self.size:
            count = min(count * side, MAX_NUMBER)
        return count

    def problem(self) -> str:
        """Why it cannot be read, or nothing."""
        if self.odd:
            return self.odd
        assert self.storage is not None
        numbers = (self.offset, *self.size, *self.stride)
        if not all(_is_number(number) for number in numbers):
            return "a tensor whose place in the file is no number"
        if len(self.size) != len(self.stride) or len(self.size) > MAX_SIDES:
            return f"a tensor of {len(self.size)} sides and {len(self.stride)} strides"
        width = width_of(self.dtype)
        if width is None:
            return f"a tensor of {self.dtype}"
        if (claim := self.claim()) == 0:
            return ""
        last = self.offset + sum(
            (side - 1) * step for side, step in zip(self.size, self.stride, strict=True)
        )
        held = self.storage.count * (width_of(self.storage.dtype) or 0)
        if (last + 1) * width > held:
            return f"a tensor beyond the end of its storage of {held} bytes"
        if claim * width > max(held, MAX_REPEATED):
            return f"a tensor of {claim * width / 1e9:.3g} GB that repeats {held} bytes"
        return ""


@dataclass(frozen=True, eq=False)
class Latin1:
    """Bytes that protocol 2 writes as a text; not converted before they are needed."""

    text: str


Raw = bytes | bytearray | str | Latin1  # of an array, as the pickle has it


@dataclass
class Array:
    """A NumPy array as the pickle describes it; of numbers only, others stay empty."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    data: Raw = b""
    fortran: bool = False

    def problem(self) -> str:
        """Why it is no tensor, or nothing."""
        return "" if self.dtype else "an array of NumPy of other things than numbers"

    def build(self, state: Any) -> None:
        """Take (version, shape, dtype, order, bytes), NumPy's own state of an array."""
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, Dtype) or not dtype.code or isinstance(data, list):
            return
        sided = all(_is_number(side) for side in shape)
        if not isinstance(data, (bytes, bytearray, str, Latin1)) or not sided:
            raise ValueError("an array without bytes")
        self.shape, self.dtype, self.data = tuple(shape), dtype.code, data
        self.fortran = bool(fortran)


@dataclass
class Dtype:
    """A NumPy dtype: ``code`` such as ``<f4``, empty for what is no number."""

    code: str

    def build(self, state: Any) -> None:
        """Take (version, byte order, ...)."""
        order = state[1]
        if order in ("<", ">") and self.code:
            self.code = order + self.code[-2:]


@dataclass
class Entries:
    """The storages that a pickle describes, by key."""

    found: dict[str, Storage] = field(default_factory=dict)

    def persistent(self, reference: Any) -> Any:
        """The storage that ``("storage", type, key, device, count[, view])`` stands for."""
        if not isinstance(reference, tuple) or len(reference) not in (5, 6):
            return Inert("a reference", reference)
        kind, of, key, _, count = reference[:5]
        if kind != "storage" or not isinstance(of, Global):
            return Inert("a reference", reference)
        if len(reference) == 6 and reference[5] is not None:
            raise ValueError("a storage that is a part of another, from before PyTorch 0.4")
        storage = Storage(key, _storage_dtype(of), count)
        if self.found.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key!r} is described in two ways")
        return storage


_STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
_WIDTHS = {
    **dict.fromkeys(("uint8", "int8", "bool"), 1), **dict.fromkeys(("float16", "bfloat16"), 2),
    **dict.fromkeys(("int16", "uint16"), 2), **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8), "complex128": 16,
}  # fmt: skip
_NUMBERS = re.compile(r"[<>|=]?([fiu][1248]|b1)")


def width_of(dtype: str) -> int | None:
    """Bytes of an element, None for types that no weights have."""
    return 1 if dtype.startswith("float8_") else _WIDTHS.get(dtype)


def _is_number(value: object) -> bool:
    """Whether it is a size or a place; numbers of a million digits take a machine minutes."""
    return type(value) is int and 0 <= value < MAX_NUMBER


def _storage_dtype(of: Global) -> str:
    return _STORAGES.get(of.name.rpartition(".")[2], str(of))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Described:
    if len(rest) > 2 and rest[2]:  # the flags of torch
        return Described(odd="a tensor that is a conjugate or negated view; .clone() it before")
    if not (isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)):
        raise ValueError("the pickle describes a tensor by what is no storage and size")
    return Described(storage, offset, size, stride, storage.dtype)


def _tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Described:
    tensor = _tensor(storage, offset, size, stride, *rest[:2], *rest[3:])
    dtype = rest[2]
    tensor.dtype = dtype.name if isinstance(dtype, Global) else "a type without a name"
    return tensor


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _subclass(function: Any, _: Any, args: Any, *__: Any) -> Any:
    """The tensor inside one of a subclass, or with attributes of its own."""
    made = CALLS.get(str(function)) if isinstance(function, Global) else None
    if made is None or not isinstance(args, tuple):
        return Described(odd=f"a tensor made by {function}")
    return made(*args)


def _odd(what: str) -> Callable[..., Described]:
    return lambda *_: Described(odd=what)


def _dictionary(*args: Any) -> dict[Any, Any]:
    """An ordered or counting dictionary; entries that stand in the call are pairs of lists."""
    pairs = args[-1] if args else ()
    if isinstance(pairs, dict):
        return pairs
    found: dict[Any, Any] = {}
    for pair in pairs if isinstance(pairs, (list, tuple)) else ():
        key, value = pair
        found[key if isinstance(key, (str, int)) else Inert("a key", key)] = value
    return found


def _encoded(text: Any, encoding: Any = "latin1") -> Any:
    if isinstance(text, str) and encoding in ("latin1", "latin-1"):
        return Latin1(text)
    return Inert("_codecs.encode", (text, encoding))


def _dtype(code: Any = "", *_: Any) -> Dtype:
    found = _NUMBERS.fullmatch(code) if isinstance(code, str) else None
    return Dtype("" if found is None else f"<{found[1]}")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> Array:
    """NumPy's form of protocol 5."""
    array = Array()
    array.build((1, shape, dtype, order == "F", data))
    return array


_UTILS = "torch._utils."
_DENSE = "pass it as a dense tensor, .to_dense() where it was saved"
# What stands for the call of a global. The functions of these names are never called themselves.
CALLS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("collections.OrderedDict", "builtins.dict"), _dictionary),
    **dict.fromkeys(("collections.defaultdict", "collections.Counter"), _dictionary),
    f"{_UTILS}_rebuild_tensor": _tensor,
    f"{_UTILS}_rebuild_tensor_v2": _tensor,
    f"{_UTILS}_rebuild_tensor_v3": _tensor_of_dtype,
    f"{_UTILS}_rebuild_parameter": _parameter,
    f"{_UTILS}_rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._tensor._rebuild_from_type": _subclass,
    f"{_UTILS}_rebuild_sparse_tensor": _odd(f"a sparse tensor; {_DENSE}"),
    f"{_UTILS}_rebuild_sparse_csr_tensor": _odd(f"a sparse tensor; {_DENSE}"),
    f"{_UTILS}_rebuild_nested_tensor": _odd(f"a nested tensor; {_DENSE}"),
    f"{_UTILS}_rebuild_qtensor": _odd("a quantised tensor; .dequantize() it where it was saved"),
    f"{_UTILS}_rebuild_meta_tensor_no_storage": _odd("a tensor of the meta device, without values"),
    f"{_UTILS}_rebuild_wrapper_subclass": _odd("a tensor of a class of its own, without elements"),
    f"{_UTILS}_rebuild_device_tensor_from_numpy": lambda array, *_: array,
    f"{_UTILS}_rebuild_xla_tensor": lambda array, *_: array,
    "_codecs.encode": _encoded,
    "numpy.dtype": _dtype,
    **{
        f"numpy.{core}.{name}": made
        for core in ("core", "_core")
        for name, made in (
            ("multiarray._reconstruct", lambda *_: Array()),
            ("numeric._frombuffer", _from_buffer),
        )
    },
}
# A file that names nothing else is read by torch itself, without objects (weights_only).
OF_TORCH = frozenset(
    {"collections.OrderedDict", f"{_UTILS}_rebuild_tensor_v2", f"{_UTILS}_rebuild_parameter"}
    | {f"torch.{name}" for name in _STORAGES if name != "UntypedStorage"}
)


def bytes_of_array(array: Array) -> bytearray:
    """The numbers of the array in the order of bytes of this machine."""
    import numpy as np

    data = array.data.text if isinstance(array.data, Latin1) else array.data
    raw = data.encode("latin-1") if isinstance(data, str) else data
    values = np.frombuffer(raw, array.dtype)
    return bytearray(values.astype(values.dtype.newbyteorder("=")).tobytes())


def tensor_of_array(array: Array, data: bytearray) -> torch.Tensor:
    """The array as a tensor that shares ``data``; ValueError when those are not of its shape."""
    import numpy as np
    import torch

    kind = np.dtype(array.dtype).newbyteorder("=")
    values = np.frombuffer(data, kind).reshape(array.shape, order="F" if array.fortran else "C")
    return torch.from_numpy(values)


def tensor_of_bytes(tensor: Described, data: bytearray) -> torch.Tensor:
    """The tensor whose storage has these bytes, which it shares."""
    import torch

    dtype = getattr(torch, tensor.dtype)
    if tensor.claim() == 0:
        return torch.empty(tensor.size, dtype=dtype)
    whole = torch.frombuffer(data, dtype=dtype, count=len(data) // dtype.itemsize)
    return whole.as_strided(tensor.size, tensor.stride, tensor.offset)


def what_is(value: object) -> str:
    """The kind of a value from a pickle, for a sentence."""
    if isinstance(value, Inert):
        return f"an object of {value.made}" if "." in value.made else value.made
    if isinstance(value, Described):
        return "a tensor"
    if isinstance(value, Array):
        return "a NumPy array"
    if isinstance(value, Global):
        return f"the name {value}"
    if isinstance(value, dict):
        return "a dictionary" if value else "an empty dictionary"
    names = {int: "a number", float: "a number", str: "a text", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")
