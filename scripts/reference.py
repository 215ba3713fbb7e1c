"""Write the reference: a page for each group of public modules, made of signatures and docstrings.

What is public is said in one place, the block `public` of docs/public.md: pages, their modules, the names of each.
A module's own docstring is shown whole, as equations and the source of several functions stand there; below a probe
stands what it reads, with units.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from optscope.probes.probe import Probe

SECTIONS = ("Args", "Raises", "Returns", "Yields")
ITEM = re.compile(r"^ {4}(\S.*?): +(.*)$")


def public(page: Path) -> dict[str, dict[str, list[str]]]:
    """Return the public names, by the page of the reference and the module that they stand in."""
    block = re.search(r"```public\n(.*?)\n```", page.read_text(), re.DOTALL)
    assert block is not None
    found: dict[str, dict[str, list[str]]] = {}
    for line in filter(None, block[1].splitlines()):
        module, _, listed = line.partition(": ")
        if line.startswith("["):
            here = found.setdefault(line.strip("[]"), {})
        else:
            every = importlib.import_module(module).__all__ if listed == "*" else ()
            here[module] = sorted(every, key=str.lower) or listed.split()
    return found


def reference(page: Path) -> dict[str, str]:
    """Return the pages of the reference by file name."""
    found = public(page)
    also = "/public", "/machines", "/licences", "/changelog"
    opening = ["# Reference", "", "Every public name, from its docstring. [What is public](../public.md) says what "
               "that promises.", "", "```{toctree}", ":hidden:", "", *found, *also, "```", ""]
    for name, modules in found.items():
        opening += [f"## [{name.capitalize()}]({name}.md)", "", "| name | |", "|---|---|"]
        opening += [f"| `{module}.{each}` | {summary(docstring(module, each)).replace('|', '&#124;')} |"
                    for module, names in modules.items() for each in names]
        opening.append("")
    homes = {(module, each) for modules in found.values() for module, names in modules.items() for each in names}
    pages = {f"{name}.md": written(name, modules, homes) for name, modules in found.items()}
    return {"index.md": "\n".join(opening), **pages}


def named(module: str, name: str) -> Any:
    """Return what a public name stands for."""
    return getattr(importlib.import_module(module), name)


def docstring(module: str, name: str) -> str:
    """Return the docstring of a public name; that of a value is the text below it in its module."""
    found = named(module, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        return inspect.getdoc(found) or ""
    body = ast.parse(inspect.getsource(importlib.import_module(module))).body
    texts = (below.value.value for above, below in pairwise(body)
             if isinstance(above, ast.Assign) and ast.unparse(above.targets[0]) == name
             and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant))
    return inspect.cleandoc(str(next(texts, "")))


def summary(docstring: str) -> str:
    """Return the first sentence of a docstring."""
    return " ".join(docstring.partition("\n\n")[0].split())


def written(page: str, modules: dict[str, list[str]], homes: set[tuple[str, str]]) -> str:
    """Return one page: its modules, each with its names; what has a public home elsewhere is only named."""
    lines = [f"# {page.capitalize()}", ""]
    for module, names in modules.items():
        lines += [f"## `{module}`", "", *markdown(inspect.cleandoc(importlib.import_module(module).__doc__ or ""))]
        for name in names:
            home = getattr(named(module, name), "__module__", module)
            away = home != module and (home, name) in homes
            lines += [f"* {{py:obj}}`{module}.{name} <{home}.{name}>`"] if away else ["", *entry(module, name), ""]
    return "\n".join(lines)


def entry(module: str, name: str) -> Iterator[str]:
    """Yield the directive of one name, of a class with the methods that are its own."""
    value = named(module, name)
    kind = "class" if inspect.isclass(value) else "function" if callable(value) else "data"
    yield f":::::{{py:{kind}}} {module}.{name}{signature(value)}"
    yield from ("", *markdown(docstring(module, name)), "", *readings(value))
    for method, found in vars(value).items() if kind == "class" else ():
        plain = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        is_property = isinstance(plain, property)
        known = method == "__call__" or any(hasattr(base, method) for base in value.__mro__[1:])
        if not (is_property or inspect.isfunction(plain)) or (method[0] == "_" and method != "__call__"):
            continue
        if known and "Raises:" not in (plain.__doc__ or ""):  # what every rule, probe or factory has, and no more
            continue
        yield f"::::{{py:{'property' if is_property else 'method'}}} {method}" + (
            "" if is_property else signature(plain, isinstance(found, staticmethod)))
        yield from ("", *markdown(inspect.getdoc(plain) or ""), "::::", "")
    yield ":::::"


def readings(value: Any) -> Iterator[str]:
    """Yield the table of what a probe reads, with units; nothing of what is no probe."""
    if not inspect.isclass(value) or not issubclass(value, Probe) or inspect.isabstract(value):
        return
    probe = object.__new__(value)  # the usual settings are the class's own; one of them has none for its data
    if probe.metrics:
        yield from ("| reads | unit | better | |", "|---|---|---|---|")
    for each in probe.metrics:
        name = f"{each.name}, a number for each {each.axis}" if each.axis else each.name
        text = f"0 where {each.text}" if each.unit == "check" else each.text
        cells = name, each.unit, "" if each.better == "neither" else each.better, text
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
    yield ""


def signature(value: Any, whole: bool = True) -> str:
    """Return the parameters of a callable, as written; without the instance of a method."""
    if not callable(value):
        return ""
    try:
        found = inspect.signature(value)
    except ValueError:
        return "(...)"
    if getattr(value, "_is_protocol", False):
        return ""
    parameters = list(found.parameters.values())
    if hasattr(value, "model_fields"):  # what is checked of a setting says its error; its type is what counts here
        plain = get_type_hints(value)
        parameters = [each.replace(annotation=plain[each.name]) for each in parameters]
    if not whole:
        parameters = parameters[1:]
    text = str(found.replace(parameters=parameters))
    text = re.sub(r"<factory>|<[^<>]* object at 0x[0-9a-f]+>|<function ([^<> ]*) at 0x[0-9a-f]+>", r"...", text)
    return re.sub(r"(: |-> )(['\"])(.*?)\2", r"\1\3", text).removesuffix(" -> None")


def markdown(docstring: str) -> Iterator[str]:
    """Yield a docstring as Markdown: examples and equations in fences, sections as lists."""
    section = False
    for paragraph in re.split(r"\n\s*\n", docstring):
        lines = paragraph.splitlines()
        opens = lines[:1] in [[f"{name}:"] for name in SECTIONS]
        indented = all(line.startswith("    ") for line in lines)
        section = opens or (section and indented)
        if opens:
            yield from (f"**{lines.pop(0)[:-1]}**", "")
        if section:
            for line in lines:
                item = ITEM.match(line)
                yield f"- `{item[1]}`: {item[2]}" if item else "  " + line.strip()
        elif lines and lines[0].startswith(">>>"):
            yield from ("```pycon", *lines, "```")
        elif lines and indented:
            yield from ("```text", *(line[4:] for line in lines), "```")
        else:
            yield from lines
        yield ""
