"""A network from the user's own code: found, built, and its inputs and outputs determined.

    with user_code(folder) as noted:
        model = built("package.module:factory")
        spec = contract("name", model, inputs_from_texts(["x:float32:N,243,17,2"]))

While the block runs, the folder comes first on the import path, and packages that need CUDA are
replaced by stand-ins (plugins/standins.py).
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mambapose.export.own_model.refusals import failure, lacking_import
from mambapose.export.samples import of_any_meaning
from mambapose.plugins.standins import StandIns, install_standins
from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import GraphSpec, TensorSpec

DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")
FREE = 2  # size of the first free side while outputs are asked for; one more the second time
EXAMPLE = "x:float32:1,243,17,2"


@contextlib.contextmanager
def user_code(folder: Path) -> Iterator[StandIns]:
    """The stand-ins in use, while the user's folder comes first on the import path.

    The stand-ins are for packages that are missing here.
    """
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        with install_standins() as noted:
            yield noted
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        # Another network may bring modules of the same names. An environment may lie in the folder
        # as well: its packages stay, and torch cannot be imported twice.
        installed = Path(sys.prefix)
        for name in set(sys.modules) - known:
            file = Path(getattr(sys.modules[name], "__file__", None) or sys.prefix)
            if file.is_relative_to(folder) and not file.is_relative_to(installed):
                del sys.modules[name]


def inputs_from_texts(texts: Sequence[str]) -> tuple[TensorSpec, ...]:
    """The inputs that NAME:DTYPE:SIDES strings describe.

    A side is a whole number, or a name such as N for a free one.
    """
    found = []
    for text in texts:
        name, _, rest = text.partition(":")
        dtype, _, sides = rest.partition(":")
        shape = tuple(_side(side.strip(), text) for side in sides.split(",")) if sides else ()
        if not name.isidentifier() or dtype not in DTYPES or not shape:
            raise ExportError(
                f"--inputs NAME:DTYPE:SIDES was wanted, such as {EXAMPLE}, found {text!r}; the "
                f"types are {', '.join(DTYPES)}"
            )
        found.append(TensorSpec(name, dtype, shape))
    names = [spec.name for spec in found]
    if not names or len(set(names)) != len(names):
        raise ExportError(
            f"--inputs for every input, each with its own name, were wanted, found "
            f"{', '.join(names) or 'none'}"
        )
    return tuple(found)


def _side(text: str, whole: str) -> int | str:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    if text.isidentifier():
        return text
    raise ExportError(
        f"a side of an input is a number from 1 on or a name, found {text!r} in {whole!r}"
    )


def built(reference: str) -> nn.Module:
    """The network that ``package.module:name`` stands for, in eval mode.

    name: a function or class that is called without arguments, or a network. ExportError, with the
    line of the user's code when the error came from there.
    """
    module_name, colon, name = reference.partition(":")
    if not (module_name and colon and name):
        raise ExportError(
            f"--model package.module:name was wanted, found {reference!r}; name the function or "
            "class that makes the network"
        )
    module = _imported(module_name)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            offered = [key for key in vars(module) if not key.startswith("_")]
            raise ExportError(
                f"{name} was wanted in {module_name}, which has no such name; it has: "
                f"{', '.join(offered[:12]) or 'none'}"
            )
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise ExportError(
                f"{reference}: a function, a class or a network was wanted, found a "
                f"{type(found).__name__}"
            )
        try:
            found = found()
        except Exception as err:
            why = failure(
                err, "give a function without arguments that builds the network as it was trained"
            )
            raise ExportError(f"{reference} was called and failed: {why}") from err
    if not isinstance(found, nn.Module):
        raise ExportError(
            f"{reference}: a torch.nn.Module was wanted of it, found a {type(found).__name__}"
        )
    network: nn.Module = found.eval()
    return network


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as err:
        lacking = lacking_import(err) if isinstance(err, ImportError) else None
        if isinstance(err, ModuleNotFoundError) and f"{name}.".startswith(f"{err.name}."):
            raise ExportError(
                f"module {name} was wanted, none is found from {Path.cwd()}; run the command in "
                "the folder of your code or add it to PYTHONPATH"
            ) from err
        if lacking is not None:
            raise ExportError(f"module {name} was wanted, it {lacking}") from err
        why = failure(err, "it has to import by itself, on a CPU")
        raise ExportError(f"module {name} was wanted, importing it failed: {why}") from err


def contract(
    name: str, model: nn.Module, inputs: tuple[TensorSpec, ...], names: Sequence[str] = ()
) -> GraphSpec:
    """Inputs and outputs of the network, found by calling it twice, with zeros or plausible values.

    Those are for a network that fails on zeros, as on a cloud whose points are all one. names: the
    names of the outputs; without them the keys of a dictionary, else ``y``, or ``y0``, ``y1``. An
    output side that changes with a free side of the inputs is free under the same name.
    """
    free = dict.fromkeys(s for spec in inputs for s in spec.shape if isinstance(s, str))
    sizes = {side: FREE + number for number, side in enumerate(free)}
    answers = [
        _outputs(model, inputs, {side: size + more for side, size in sizes.items()})
        for more in (0, 1)
    ]
    given = list(answers[0])
    if names and len(names) != len(given):
        raise ExportError(
            f"names for {len(given)} outputs were wanted, found {len(names)}: {', '.join(names)}"
        )
    specs = []
    for label, (key, one), other in zip(
        names or given, answers[0].items(), answers[1].values(), strict=True
    ):
        dtype = str(one.dtype).removeprefix("torch.")
        sides = zip(one.shape, other.shape, strict=True)
        shape = tuple(a if a == b else _follows(a, b, sizes, key) for a, b in sides)
        specs.append(TensorSpec(label, dtype, shape))
    return GraphSpec(name, inputs, tuple(specs))


def _follows(a: int, b: int, sizes: Mapping[str, int], output: str) -> str:
    """The name of the free side that has the size ``a`` in one call and ``b`` in the other."""
    for side, size in sizes.items():
        if (a, b) == (size, size + 1):
            return side
    tried = ", ".join(f"{side} {size} and {size + 1}" for side, size in sizes.items())
    raise ExportError(
        f"output {output}: sides that are fixed or those of a free input side were wanted, one "
        f"becomes {a} and {b} for {tried}; give --inputs whole numbers"
    )


def _outputs(
    model: nn.Module, inputs: tuple[TensorSpec, ...], free: Mapping[str, int]
) -> dict[str, Tensor]:
    generator = np.random.default_rng(0)
    shapes = [
        tuple(free[side] if isinstance(side, str) else side for side in spec.shape)
        for spec in inputs
    ]
    zeros = [
        torch.zeros(shape, dtype=getattr(torch, spec.dtype))
        for spec, shape in zip(inputs, shapes, strict=True)
    ]
    plausible = [
        torch.from_numpy(of_any_meaning(spec, shape, generator))
        for spec, shape in zip(inputs, shapes, strict=True)
    ]
    kept = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    before = {name: tensor._version for name, tensor in kept.items()}
    with torch.no_grad():
        try:
            answer = model(*zeros)
        except Exception:
            try:
                answer = model(*plausible)
            except Exception as err:
                asked = ", ".join(map(str, inputs))
                why = failure(err, "give --inputs as its forward takes them")
                raise ExportError(f"the network was called with {asked} and failed: {why}") from err
    if changed := [name for name, tensor in kept.items() if tensor._version != before[name]]:
        raise ExportError(
            f"{changed[0]} changes in place when the network is called, an exported graph keeps "
            "nothing between calls; take the state as an input and return it"
        )
    return flattened(answer)


def check_repeatable(model: nn.Module, spec: GraphSpec, inputs: Sequence[Tensor]) -> None:
    """ExportError unless the sizes are the contract's and two calls give the same values.

    An exported graph keeps nothing between calls and draws no random numbers; torch would record
    what it saw of either as a constant.
    """
    before = _tensors_held(model)
    try:
        with torch.no_grad():
            first, second = ([*flattened(model(*inputs)).values()] for _ in range(2))
    except ExportError:
        raise
    except Exception as err:
        why = failure(err, "every input of the types and sizes given has to be answered")
        raise ExportError(f"the network was called with random values and failed: {why}") from err
    for output, one, other in zip(spec.outputs, first, second, strict=True):
        if any(have != want for have, want in zip(one.shape, output.shape, strict=True)
               if isinstance(want, int)):  # fmt: skip
            raise ExportError(
                f"output {output} was found first, {tuple(one.shape)} for other values of the "
                "same size; sizes have to follow from the inputs' sizes, mark values instead of "
                "leaving them out"
            )
        one, other = one.double(), other.double()
        scale = float(one.abs().max()) if one.numel() else 0.0
        if torch.allclose(one, other, rtol=1e-3, atol=1e-5 * scale, equal_nan=True):
            continue
        after = _tensors_held(model)
        if changed := [
            name
            for name, (tensor, version) in after.items()
            if name not in before or before[name][0] is not tensor or before[name][1] != version
        ]:
            raise ExportError(
                f"{changed[0]} is kept from one call to the next and changes the answer, an "
                "exported graph keeps nothing between calls; take the state as an input and "
                "return it"
            )
        raise ExportError(
            "the same answer was wanted to the same inputs, found another one the second time; an "
            "exported graph draws no random numbers, take them as an input or leave them out"
        )


def _tensors_held(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Name -> a tensor that the model holds, and how often it was changed in place.

    Tensors that are plain attributes count as well.
    """
    held: dict[str, tuple[Tensor, int]] = {}
    for path, module in model.named_modules():
        for name, value in {**vars(module), **module._buffers, **module._parameters}.items():
            if isinstance(value, Tensor):
                held[f"{path}.{name}".lstrip(".")] = (value, value._version)
    return held


def flattened(answer: Any) -> dict[str, Tensor]:
    """Name -> tensor for the result of a network: a tensor, a tuple or list, or a dictionary."""
    if isinstance(answer, Tensor):
        return {"y": answer}
    if isinstance(answer, Mapping):
        named = dict(answer)
    elif isinstance(answer, (tuple, list)):
        named = {f"y{number}": value for number, value in enumerate(answer)}
    else:
        named = {"": answer}
    kept = {str(name): value for name, value in named.items() if value is not None}
    if not kept or not all(isinstance(value, Tensor) for value in kept.values()):
        kinds = ", ".join(type(value).__name__ for value in named.values())
        raise ExportError(
            f"tensors were wanted as the network's outputs, found {kinds or 'none'}; wrap it in a "
            "module that returns a tensor or a tuple of them"
        )
    return kept
