"""How long each shard of a torch.distributed checkpoint must be, from its `.metadata`.

`.metadata` is a pickle, and unpickling runs code. So the opcodes are read and a stack
machine of our own follows them, in which a class is only its name and a call only a
record that it would have happened. The storage entries are objects of class
`_StorageInfo` with the state {relative_path, offset, length}
(torch/distributed/checkpoint/filesystem.py, torch 2.2 to 2.13).
"""

from __future__ import annotations

import pickletools
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_OPCODES = 4_000_000  # some seconds; a checkpoint of 60,000 tensors
MAX_SHARDS = 20_000
_STORAGE = "_StorageInfo"
_MARK = object()


class NotMetadataError(Exception):
    """It is no whole pickle; the message says why in one line."""


class TooLargeError(Exception):
    """It may be right, and is too large to follow."""


class _Object:
    """An instance that was not made; only its class's name is kept."""

    __slots__ = ("of",)

    def __init__(self, of: str) -> None:
        self.of = of


class _Class:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Machine:
    """Follows a pickle far enough to know what the storage entries say."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.lengths: dict[str, int] = {}

    def pop(self) -> object:
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        items: list[object] = []
        while True:
            item = self.stack.pop()
            if item is _MARK:
                items.reverse()
                return items
            items.append(item)

    def build(self) -> None:
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, _Object) and target.of == _STORAGE and isinstance(state, dict):
            self.note(state)

    def note(self, state: dict[object, object]) -> None:
        path, offset, length = (state.get(k) for k in ("relative_path", "offset", "length"))
        if not isinstance(path, str) or not _is_size(offset) or not _is_size(length):
            raise NotMetadataError("a storage entry of it is damaged")
        self.lengths[path] = max(self.lengths.get(path, 0), offset + length)
        if len(self.lengths) > MAX_SHARDS:
            raise TooLargeError


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < 1 << 62


def _call(machine: _Machine) -> None:
    machine.pop()
    of = machine.pop()
    machine.stack.append(_Object(of.name if isinstance(of, _Class) else ""))


def _new_with_keywords(machine: _Machine) -> None:
    machine.pop()
    _call(machine)


def _stack_global(machine: _Machine) -> None:
    name = machine.pop()
    machine.pop()
    machine.stack.append(_Class(name if isinstance(name, str) else ""))


def _set_items(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    _put(machine.stack[-1], items)


def _set_item(machine: _Machine) -> None:
    value = machine.pop()
    key = machine.pop()
    _put(machine.stack[-1], [key, value])


def _put(target: object, items: list[object]) -> None:
    """Only dictionaries with plain keys matter: the state of storage entries is one."""
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=False):
            if isinstance(key, str):
                target[key] = value


def _drop_to_mark(machine: _Machine) -> None:
    machine.pop_to_mark()


def _replace_marked(machine: _Machine) -> None:
    machine.pop_to_mark()
    machine.stack.append(())


def _replaced(count: int) -> Callable[[_Machine], None]:
    """An opcode that takes `count` items and leaves one that nobody will ask about."""

    def apply(machine: _Machine) -> None:
        for _ in range(count):
            machine.pop()
        machine.stack.append(())

    return apply


def _dropped(machine: _Machine) -> None:
    machine.pop()


def _marked_object(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    of = items[0] if items else None
    machine.stack.append(_Object(of.name if isinstance(of, _Class) else ""))


_OPERATIONS: dict[str, Callable[[_Machine], None]] = {
    "MARK": lambda machine: machine.stack.append(_MARK),
    "NEWOBJ": _call,
    "NEWOBJ_EX": _new_with_keywords,
    "REDUCE": _call,
    "OBJ": _marked_object,
    "INST": _replace_marked,
    "BUILD": _Machine.build,
    "STACK_GLOBAL": _stack_global,
    "EMPTY_DICT": lambda machine: machine.stack.append({}),
    "SETITEMS": _set_items,
    "SETITEM": _set_item,
    "APPEND": _dropped,
    "APPENDS": _drop_to_mark,
    "ADDITEMS": _drop_to_mark,
    "POP": _dropped,
    "POP_MARK": _drop_to_mark,
    "DUP": lambda machine: machine.stack.append(machine.stack[-1]),
    "TUPLE": _replace_marked,
    "LIST": _replace_marked,
    "DICT": _replace_marked,
    "FROZENSET": _replace_marked,
    "TUPLE1": _replaced(1),
    "TUPLE2": _replaced(2),
    "TUPLE3": _replaced(3),
    "BINPERSID": _replaced(1),
}
_NOTHING = frozenset({"PROTO", "FRAME", "STOP", "READONLY_BUFFER"})


def shard_lengths(data: bytes) -> dict[str, int]:
    """Returns the least length in bytes of every shard, by its path relative to `.metadata`.

    Empty for a pickle that is whole and says nothing of shards: not DCP's.

    Args:
        data: The whole content of a `.metadata` file.

    Raises:
        NotMetadataError: It is cut or damaged.
        TooLargeError: It is larger than anything we are ready to follow.
    """
    if not data.endswith(b"."):
        raise NotMetadataError("its end is missing")
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPCODES:
                raise TooLargeError
            _follow(machine, opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise NotMetadataError("it is not a whole pickle") from error
    return machine.lengths


def _follow(machine: _Machine, name: str, argument: object) -> None:
    operation = _OPERATIONS.get(name)
    if operation is not None:
        operation(machine)
    elif name == "MEMOIZE":
        machine.memo[len(machine.memo)] = machine.stack[-1]
    elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
        machine.memo[int(str(argument))] = machine.stack[-1]
    elif name in ("BINGET", "LONG_BINGET", "GET"):
        machine.stack.append(machine.memo[int(str(argument))])
    elif name == "GLOBAL":
        machine.stack.append(_Class(str(argument).rpartition(" ")[2]))
    elif name not in _NOTHING:
        machine.stack.append(argument)
