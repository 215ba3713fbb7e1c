"""What a function does, read from its bytecode: blind to comments, docstrings, lines and the words of errors."""

from __future__ import annotations

import bisect
import dis
import functools
import hashlib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_KINDS = 0x3AC  # of a block's flags: *args, **kwargs, generator, coroutine
_OF_A_CLASS = {"__doc__", "__firstlineno__", "__static_attributes__"}  # what a class body notes about its text
_CHANGING = {"append", "add", "update", "setdefault", "pop", "popitem", "clear", "extend", "insert", "remove",
             "discard", "appendleft", "popleft"}
_ENDS = {"RAISE_VARARGS", "RETURN_VALUE", "POP_TOP", "STORE_FAST", "STORE_GLOBAL", "STORE_NAME", "STORE_DEREF"}
_SAYING, _JUMPS = frozenset(dis.hasconst + dis.hasname), frozenset(dis.hasjrel + dis.hasjabs)
_GLOBAL, _CELL = {"LOAD_GLOBAL", "LOAD_NAME"}, {"LOAD_DEREF", "LOAD_CLASSDEREF"}


@dataclass(frozen=True)
class Block:
    """What is to be known of one function's code, that of the functions inside it included.

    `names` are the globals it reads, `changed` the globals and outer variables it writes to or changes in place,
    and ".NAME" for attributes of classes that it sets, `words` its attribute names and texts, `imports` pairs
    (module, level, names) of the imports it makes.
    """

    digest: str
    names: frozenset[str]
    changed: frozenset[str]
    words: frozenset[str]
    imports: frozenset[tuple[str, int, tuple[str, ...]]]


@functools.cache
def block(code: types.CodeType) -> Block:
    """Return what a function's code does and names.

    >>> def f(x): return x + 1  # a comment
    >>> def g(x):
    ...     "A docstring."
    ...     return x + 1
    >>> block(f.__code__).digest == block(g.__code__).digest
    True
    """
    steps = [s for s in dis.get_instructions(code) if s.opname != "EXTENDED_ARG"]  # a part of the one after it
    inner = [block(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    text = repr((_signature(code), list(_spoken(code, steps))))
    said = {s.argval for s in steps if s.opcode in _SAYING and isinstance(s.argval, str)}
    return Block(
        hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        frozenset(s.argval for s in steps if s.opname in _GLOBAL).union(*(b.names for b in inner)),
        frozenset(_changed(steps)).union(*(b.changed for b in inner)),
        frozenset(said).union(*(b.words for b in inner)),
        frozenset((s.argval, int(steps[i - 2].argval or 0), tuple(steps[i - 1].argval or ()))
                  for i, s in enumerate(steps) if s.opname == "IMPORT_NAME").union(*(b.imports for b in inner)))


def _signature(code: types.CodeType) -> tuple[object, ...]:
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    return counts, code.co_flags & _KINDS, code.co_varnames[:code.co_argcount + code.co_kwonlyargcount + 2]


def _spoken(code: types.CodeType, steps: Sequence[dis.Instruction]) -> Iterator[object]:
    """Yield the instructions that count, jumps by where they lead among these, and what `try` guards."""
    kept = _kept(steps)
    places = [steps[i].offset for i in kept]
    for i in kept:
        step = steps[i]
        if step.opcode in _JUMPS:
            yield step.opname, bisect.bisect_left(places, step.argval)
        else:
            yield step.opname, _plain(step.argval)
    entries = dis.Bytecode(code).exception_entries if code.co_exceptiontable else ()  # type: ignore[attr-defined]
    for entry in entries:
        ends = (bisect.bisect_left(places, place) for place in (entry.start, entry.end, entry.target))
        yield (*ends, entry.depth, entry.lasti)


def _kept(steps: Sequence[dis.Instruction]) -> list[int]:
    """Return the places of all instructions but those that word a UserError or describe a class's text."""
    kept: list[int] = []
    i = 0
    while i < len(steps):
        kept.append(i)
        following = steps[i + 1] if i + 1 < len(steps) else None
        if steps[i].opname == "LOAD_GLOBAL" and steps[i].argval == "UserError":
            end = next((j for j in range(i + 1, len(steps)) if steps[j].opname in _ENDS), i + 1)
            i = end if steps[end].opname == "RAISE_VARARGS" else i + 1
        elif following is not None and following.opname == "STORE_NAME" and following.argval in _OF_A_CLASS:
            kept.pop()
            i += 2
        else:
            i += 1
    return kept


def _plain(value: object) -> object:
    """Return a constant as something whose repr is the same in every process."""
    if isinstance(value, types.CodeType):
        return block(value).digest
    if isinstance(value, frozenset):
        return "frozenset", sorted(map(repr, map(_plain, value)))
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _changed(steps: Sequence[dis.Instruction]) -> Iterator[str]:
    """Yield the globals and outer variables that are bound anew, or changed in place."""
    for i, step in enumerate(steps):
        if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF"):
            yield step.argval
        target = None
        if step.opname in _GLOBAL and step.argval == "next" and steps[i + 1].opname in _GLOBAL | _CELL:
            yield steps[i + 1].argval
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in _CHANGING:
            target = i - 1
        elif step.opname in ("STORE_ATTR", "DELETE_ATTR"):
            target = _operand(steps, i, 0)
        elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            target = _operand(steps, i, 1)
        if target is None or target < 0:
            continue
        if steps[target].opname in _GLOBAL | _CELL:
            yield steps[target].argval
        elif step.opname == "STORE_ATTR" and (steps[target].opname == "CALL"
                                              or steps[target].argval in ("cls", "__class__")):
            yield f".{step.argval}"  # of a class, as type(self).count


def _operand(steps: Sequence[dis.Instruction], i: int, below: int) -> int:
    """Return where the value is loaded that lies `below` the top of the stack before instruction `i`."""
    i -= 1
    if i >= 0 and steps[i].opname == "SWAP":  # x[k] += 1 holds x and k since it read x[k]
        while i >= 0 and steps[i].opname not in ("COPY", "DUP_TOP_TWO"):
            i -= 1
        while i >= 0 and steps[i].opname in ("COPY", "DUP_TOP_TWO"):
            i -= 1
    for _ in range(below):
        wanted = 1
        while wanted > 0 and i >= 0:
            wanted -= dis.stack_effect(steps[i].opcode, steps[i].arg, jump=False)
            i -= 1
    return i


def is_dunder(name: str) -> bool:
    """Return whether Python itself reads that name."""
    return name.startswith("__") and name.endswith("__")


def is_full(cell: types.CellType) -> bool:
    """Return whether an outer variable has a value by now."""
    try:
        return cell.cell_contents is not cell
    except ValueError:  # of a function that names itself, before it is bound
        return False
