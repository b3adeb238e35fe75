"""A pickle read as data: nothing that it names is imported, nothing that it calls is called.

A pickle is a program for a small stack machine, and what makes it dangerous is that it may name
any function of any module and have it called. The machine here knows all of its instructions,
but a name is only ever a `Global`, and a call only ever a note of what was called with what: an
`Inert` placeholder, or the description that ``known`` has for a few names (tensors, dictionaries).
So a class of a training framework that is not installed costs nothing, and no pickle can do harm.

A pickle that would run code in an ordinary reader is refused all the same, with the name
(``dangers.py`` says which those are): such a file was made to attack somebody. It is refused when
it calls one of them, calls what it has made by a call, or changes a global; merely naming one is
let pass, since it does nothing in any reader but import. Time and memory are in proportion
to the length of the pickle: keys that are not plain values are told apart by identity, because
the hash of nested tuples is exponential in their depth, and nothing here recurses.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from mambapose.export.checkpoints.dangers import words, would_run

MAX_INSTRUCTIONS = 10_000_000  # twenty seconds; the state of an optimiser takes some 100,000
NAME_LETTERS = 1000
LINE_BYTES = 1 << 16  # of a name or number that is written as a line of text
Known = Mapping[str, Callable[..., Any]]


class WouldRunCode(Exception):
    """The pickle calls or changes something that could do harm; the message says what."""


class Global:
    """The name of something in a module: ``collections.OrderedDict``."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """The place of an object that was not made.

    made: what would have been called; args: with what; state: what it would have been given then;
    items: its entries, if it were a dictionary.
    """

    __slots__ = ("args", "items", "made", "state")

    def __init__(self, made: str, args: Any = ()) -> None:
        self.made, self.args = made, args
        self.state: Any = None
        self.items: dict[Any, Any] = {}


class Bytes:
    """The rest of a file, or a piece of memory, from which nothing beyond the end is asked."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        """``count`` bytes; ValueError when there are fewer, before memory is taken for them."""
        if not 0 <= count <= self._size - self._file.tell():
            raise ValueError("the pickle ends early")
        return self._file.read(count)

    def readline(self) -> bytes:
        """A line of at most LINE_BYTES."""
        return self._file.readline(LINE_BYTES)

    def tell(self) -> int:
        return self._file.tell()


class _Mark:
    """Where a group of values on the stack begins."""


_MARK = _Mark()
_PUSHED = words(
    """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES
    SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT
    BINFLOAT
    """
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_KEYS = (str, int, float, bool, bytes, type(None))


class Machine:
    """Reads one pickle.

    known: name of a global -> what stands for a call of it, made from the arguments.
    persistent: what stands for a reference to something outside the pickle. After ``load``,
    ``named`` has every global and ``protocol`` the pickle's.
    """

    def __init__(self, known: Known, persistent: Callable[[Any], Any]) -> None:
        self._known, self._persistent = known, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.protocol, self._given = 0, 0
        self.named: set[str] = set()

    def load(self, stream: Bytes) -> Any:
        """What the pickle describes; the stream stands behind its end then.

        WouldRunCode, or any other error of a pickle that is damaged.
        """
        stack = self._stack
        instructions = pickletools.genops(stream)  # type: ignore[arg-type]
        for count, (opcode, argument, _) in enumerate(instructions):
            if count == MAX_INSTRUCTIONS:
                break
            name = opcode.name
            if name in _PUSHED:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "STOP":
                return self._pop()
            elif name == "PROTO":
                self.protocol = int(argument or 0)
            elif name != "FRAME":
                _STEPS[name](self, argument)
        raise ValueError(f"the pickle has no end within {MAX_INSTRUCTIONS} instructions")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("the pickle takes a mark for a value")
        return value

    def _group(self) -> list[Any]:
        """The values since the last mark, taken off the stack with it."""
        stack = self._stack
        for start in range(len(stack) - 1, -1, -1):
            if stack[start] is _MARK:
                group = stack[start + 1 :]
                del stack[start:]
                return group
        raise ValueError("the pickle lacks a mark")

    def _mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _drop(self, _: Any) -> None:
        self._stack.pop()

    def _drop_group(self, _: Any) -> None:
        self._group()

    def _twice(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def _put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _list(self, _: Any) -> None:
        self._stack.append(self._group())

    def _append(self, _: Any) -> None:
        value = self._pop()
        self._extend([value])

    def _appends(self, _: Any) -> None:
        self._extend(self._group())

    def _extend(self, values: list[Any]) -> None:
        whole = self._stack[-1]
        self._refuse_change(whole)
        if isinstance(whole, list):
            whole.extend(values)
        elif not isinstance(whole, (Inert, dict)):  # a list's subclass, or a set: its values go
            raise ValueError("the pickle appends to what is no list")

    def _empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _dict(self, _: Any) -> None:
        values = self._group()
        self._stack.append({})
        self._fill(values)

    def _setitem(self, _: Any) -> None:
        value = self._pop()
        self._fill([self._pop(), value])

    def _setitems(self, _: Any) -> None:
        self._fill(self._group())

    def _fill(self, values: list[Any]) -> None:
        whole = self._stack[-1]
        self._refuse_change(whole)
        items = whole.items if isinstance(whole, Inert) else whole
        if not isinstance(items, dict) or len(values) % 2:
            raise ValueError("the pickle sets entries of what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            items[key if isinstance(key, _KEYS) else Inert("a key", key)] = value

    def _empty_set(self, _: Any) -> None:
        self._stack.append(Inert("builtins.set"))

    def _frozenset(self, _: Any) -> None:
        self._stack.append(Inert("builtins.frozenset", tuple(self._group())))

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._group()))

    def _some(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._stack.append(tuple(values[::-1]))

    def _global(self, pair: str) -> None:
        module, _, name = pair.partition(" ")
        self._push_global(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._push_global(module, name)

    def _push_global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("the pickle names something by what is no text")
        if len(module) + len(name) > NAME_LETTERS:
            raise ValueError("the pickle names something by a text too long for a name")
        if self.protocol < 3:  # written with the names of Python 2 to this day
            module, name = NAME_MAPPING.get((module, name), (module, name))
            module = IMPORT_MAPPING.get(module, module)
        found = Global(module, name)
        self.named.add(str(found))
        self._stack.append(found)

    def _extension(self, code: int) -> None:
        raise WouldRunCode(f"it takes number {code} of copyreg's register")

    def _buffer(self, _: Any) -> None:
        raise ValueError("the pickle wants a buffer that is not in the file")

    def _reduce(self, _: Any) -> None:
        args = self._pop()
        self._call(self._pop(), args)

    def _newobj(self, _: Any) -> None:
        self._reduce(_)

    def _newobj_ex(self, _: Any) -> None:
        self._pop()  # arguments by name
        self._reduce(_)

    def _inst(self, pair: str) -> None:
        args = tuple(self._group())
        self._global(pair)
        self._call(self._pop(), args)

    def _obj(self, _: Any) -> None:
        whole = self._group()
        self._call(whole[0], tuple(whole[1:]))

    def _call(self, function: Any, args: Any) -> None:
        """Push what stands for the call of a global."""
        if not isinstance(function, Global):
            made = (
                f"what it made with {function.made}" if isinstance(function, Inert) else "a value"
            )
            raise WouldRunCode(f"it calls {made}")
        if not isinstance(args, tuple):
            raise ValueError("the pickle calls with what is no tuple of arguments")
        if (member := _member(function, args)) is not None:
            self._stack.append(member)
            return
        whole = str(function)
        if would_run(function.module, function.name):
            raise WouldRunCode(f"it calls {whole}")
        if whole.startswith("copyreg."):  # a class and its arguments, in other words
            if not args or not isinstance(args[0], Global):
                raise ValueError("the pickle makes an object of what is no class")
            self._call(args[0], args[1:])
            return
        described = self._known.get(whole)
        self._charge(args[-1] if args else None)
        self._stack.append(Inert(whole, args) if described is None else described(*args))

    def _charge(self, argument: Any) -> None:
        """Count the entries that a call is given: one list can be given to a million calls."""
        self._given += len(argument) if isinstance(argument, (list, dict, tuple)) else 0
        if self._given > MAX_INSTRUCTIONS:
            raise ValueError(f"the pickle gives its calls more than {MAX_INSTRUCTIONS} entries")

    def _build(self, _: Any) -> None:
        state = self._pop()
        whole = self._stack[-1]
        self._refuse_change(whole)
        if isinstance(whole, Inert):
            whole.state = state
        elif hasattr(whole, "build"):
            whole.build(state)

    def _refuse_change(self, whole: Any) -> None:
        if isinstance(whole, Global):
            raise WouldRunCode(f"it changes {whole}")

    def _persistent_text(self, text: str) -> None:
        self._stack.append(self._persistent(text))

    def _persistent_value(self, _: Any) -> None:
        self._stack.append(self._persistent(self._pop()))


_STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark, "POP": Machine._drop, "POP_MARK": Machine._drop_group,
    "DUP": Machine._twice, "GET": Machine._get, "BINGET": Machine._get,
    "LONG_BINGET": Machine._get, "PUT": Machine._put, "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put, "MEMOIZE": Machine._memoize, "EMPTY_LIST": Machine._empty_list,
    "LIST": Machine._list, "APPEND": Machine._append, "APPENDS": Machine._appends,
    "EMPTY_DICT": Machine._empty_dict, "DICT": Machine._dict, "SETITEM": Machine._setitem,
    "SETITEMS": Machine._setitems, "EMPTY_SET": Machine._empty_set,
    "ADDITEMS": Machine._appends, "FROZENSET": Machine._frozenset, "TUPLE": Machine._tuple,
    "TUPLE1": lambda machine, _: machine._some(1), "TUPLE2": lambda machine, _: machine._some(2),
    "TUPLE3": lambda machine, _: machine._some(3), "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global, "EXT1": Machine._extension,
    "EXT2": Machine._extension, "EXT4": Machine._extension, "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._newobj, "NEWOBJ_EX": Machine._newobj_ex, "INST": Machine._inst,
    "OBJ": Machine._obj, "BUILD": Machine._build, "PERSID": Machine._persistent_text,
    "BINPERSID": Machine._persistent_value, "NEXT_BUFFER": Machine._buffer,
    "READONLY_BUFFER": Machine._buffer,
}  # fmt: skip


def _member(function: Global, args: tuple[Any, ...]) -> Global | None:
    """What ``getattr`` of a class would find, such as a value of an enumeration; None for others.

    ``os.system`` is found this way too: as the name, which is then refused when it is called.
    """
    if str(function) != "builtins.getattr" or len(args) != 2:
        return None
    owner, name = args
    if not (isinstance(owner, Global) and isinstance(name, str) and name.isidentifier()):
        return None
    return None if name.startswith("__") else Global(owner.module, f"{owner.name}.{name}")
