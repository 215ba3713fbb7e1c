"""The architecture, held against the syntax trees: who imports whom, how long things are, what is said."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from optscope.protocol.settings import read_settings

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"

PAGE = (ROOT / "docs" / "architecture.md").read_text()

# From the ground up. A unit imports from levels below its own, and from no neighbour on its level.
LEVELS = [line.split() for line in re.search(r"```levels\n(.*?)\n```", PAGE, re.DOTALL)[1].splitlines()][::-1]
# Units that may see less than their level allows, and all that they may see.
SEES = {
    "report": {"optscope.evidence", "optscope.files", "optscope.errors"},
    "engine": {"optscope.evidence", "optscope.files", "optscope.errors", "optscope.vector", "optscope.devices",
               "optscope.optim.rule", "optscope.optim.players", "optscope.optim.schedules", "optscope.optim.rates",
               "optscope.optim.trial",
               "optscope.tasks.task", "optscope.tasks.game", "optscope.tasks.objective", "optscope.tasks.tree",
               "optscope.tasks.content", "optscope.tasks.mapping", "optscope.tasks.mean_loss",
               "optscope.tasks.examples",
               "optscope.tasks.fresh", "optscope.tasks.snapshot", "optscope.tasks.unchanged",
               "optscope.tasks.trained_loss", "optscope.probes.probe"},
}
WITHOUT_TORCH = ("errors", "files", "pace", "status", "following", "serving", "evidence", "theory", "report")
MODULE_LINES, FUNCTION_LINES = 320, 60
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "common", "misc"}
ERRORS_THAT_SAY_NOTHING = {"Exception", "BaseException", "NotImplementedError"}
DISTRIBUTION_OF = {"PIL": "pillow"}  # where a package's import name is not its distribution's


@dataclass(frozen=True)
class Import:
    """One imported module, the names taken from it, and when that happens."""

    target: str
    names: tuple[str, ...]
    line: int
    when: str
    """ "start" (with the module), "call" (inside a function), "types" (never at run time)."""


def imports(tree: ast.AST, when: str = "start") -> Iterator[Import]:
    """Yield every absolute import below a node of the tree."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, (), node.lineno, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.module or "", tuple(alias.name for alias in node.names), node.lineno, when)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(node, "types")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports(node, "call" if when == "start" else when)
        else:
            yield from imports(node, when)


@dataclass(frozen=True)
class Module:
    """One source file of the package."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def name(self) -> str:
        parts = self.path.relative_to(SRC).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def unit(self) -> str:
        """The module or package right below `optscope`; "" for the front door, `optscope` itself."""
        return self.name.partition(".")[2].partition(".")[0]

    @cached_property
    def imports(self) -> list[Import]:
        """All imports, with `from package import module` written as an import of `package.module`."""
        return [Import(f"{i.target}.{name}", (), i.line, i.when) if f"{i.target}.{name}" in NAMES
                else Import(i.target, (name,), i.line, i.when)
                for i in imports(self.tree) for name in (i.names or ("",))]

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"


PATHS = sorted(set((SRC / "optscope").rglob("*.py")) - set((SRC / "optscope" / "templates").iterdir()))
MODULES = [Module(path) for path in PATHS]
NAMES = {module.name: module for module in MODULES}
LEVEL_OF = {unit: level for level, units in enumerate(LEVELS) for unit in units}


def none(offenders: Iterable[str], rule: str) -> None:
    """Fail with the rule and the full list of what breaks it."""
    found = list(offenders)
    if found:
        pytest.fail("\n".join([rule, *found]), pytrace=False)


def unit_of(target: str) -> str:
    return target.partition(".")[2].partition(".")[0]


def inner(module: Module) -> list[Import]:
    """Return a module's imports from the package itself."""
    return [i for i in module.imports if i.target.partition(".")[0] == "optscope"]


def test_every_unit_has_a_level():
    none({f"{m.path.relative_to(ROOT)}: {m.unit!r}" for m in MODULES if m.unit and m.unit not in LEVEL_OF},
         "every module or package right below optscope needs a level in docs/architecture.md")


def test_imports_only_go_down():
    none((f"{m.at(i.line)}: {m.unit} imports {i.target}" for m in MODULES if m.unit for i in inner(m)
          if unit_of(i.target) != m.unit
          and not LEVEL_OF.get(unit_of(i.target), len(LEVELS)) < LEVEL_OF.get(m.unit, -1)),
         f"imports only go down these levels: {' < '.join(' '.join(units) for units in LEVELS)}")


def test_the_page_names_what_is_there():
    named = set(re.findall(r"`([\w/]+\.(?:py|toml|md|txt))`", PAGE))
    none((name for name in sorted(named)
          if not (ROOT / name).is_file() and not (SRC / "optscope" / name).is_file()),
         "docs/architecture.md names files that are there")
    none(sorted({unit for units in LEVELS for unit in units} - {m.unit for m in MODULES}),
         "docs/architecture.md gives levels to units that are there")


@pytest.mark.parametrize("unit", SEES)
def test_some_units_see_little(unit):
    allowed = (*SEES[unit], f"optscope.{unit}")
    none((f"{m.at(i.line)}: {i.target}" for m in MODULES if m.unit == unit for i in inner(m)
          if not any(f"{i.target}.".startswith(f"{name}.") for name in allowed)),
         f"{unit} imports from the package only {', '.join(sorted(allowed))}")


def test_units_without_torch():
    def reaches_torch(module: Module, seen: set[str]) -> bool:
        seen.add(module.name)
        for i in module.imports:
            if i.when == "types":
                continue
            if i.target.partition(".")[0] == "torch":
                return True
            if i.target in NAMES and i.target not in seen and reaches_torch(NAMES[i.target], seen):
                return True
        return False

    none((m.name for m in MODULES if m.unit in WITHOUT_TORCH and reaches_torch(m, set())),
         f"{', '.join(WITHOUT_TORCH)} run without torch, and so do the modules that they import")


def test_torch_is_not_loaded_before_it_is_needed():
    quick = [m.name for m in MODULES if m.unit in (*WITHOUT_TORCH, "cli")]
    code = f"import sys, {', '.join(quick)}; sys.exit('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.returncode == 0, f"importing one of {quick} loads torch, or fails: {loaded.stderr}"


def test_what_few_need_of_scipy_is_not_loaded_at_the_start():
    code = ("import sys, optscope.lab; "
            "sys.exit(str({'scipy.stats', 'scipy.optimize', 'scipy.sparse'} & {*sys.modules} or ''))")
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stderr.strip() == ""


def test_no_cyclic_imports():
    """Also none that only types or a function's first call would close: such modules are one idea in two files."""
    graph = {m.name: {i.target for i in inner(m)} for m in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_only_declared_dependencies_are_imported_at_the_start():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", text)[0] for text in project["dependencies"]} | {"optscope"}
    none((f"{m.at(i.line)}: {i.target}" for m in MODULES for i in m.imports if i.when == "start"
          if (top := i.target.partition(".")[0]) not in sys.stdlib_module_names
          and DISTRIBUTION_OF.get(top, top) not in declared),
         "modules import what pyproject.toml lists as dependencies; what an extra brings, inside a function")


def functions(module: Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef))


def test_sizes():
    long = [f"{m.path.relative_to(ROOT)}: {n} lines" for m in MODULES
            if (n := len(m.text.splitlines())) > MODULE_LINES]
    long += [f"{m.at(f.lineno)}: {f.name} has {n} lines" for m in MODULES for f in functions(m)
             if (n := (f.end_lineno or 0) - f.lineno + 1) > FUNCTION_LINES]
    none(long, f"at most {MODULE_LINES} lines a module, {FUNCTION_LINES} a function: is each still one idea?")


def undocumented(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield the public classes, functions and methods below a node that have no docstring."""
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
            decorators = {ast.unparse(d).rpartition(".")[2] for d in child.decorator_list}
            if ast.get_docstring(child) is None and not decorators & {"override", "overload", "setter"}:
                yield child
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child)


def test_every_public_name_is_documented():
    none((f"{m.at(node.lineno)}: {node.name}" for m in MODULES for node in undocumented(m.tree)),
         "every public class, function and method says in a docstring what it is or does")


def test_every_module_opens_with_its_idea():
    none((str(m.path.relative_to(ROOT)) for m in MODULES
          if not re.match(r"[A-Z\"`].*\S[.:?]$", (ast.get_docstring(m.tree) or "").partition("\n")[0])),
         "the first line of a module is one sentence that says what idea lives there")


def test_the_front_door_opens():
    optscope = importlib.import_module("optscope")
    names = getattr(optscope, "__all__", [])
    none((name for name in names if not getattr(optscope, name, None).__doc__),
         "every name in optscope.__all__ is there and documented")


def test_names_say_something():
    none((str(m.path.relative_to(ROOT)) for m in MODULES if set(m.name.split(".")) & NAMES_THAT_SAY_NOTHING),
         "a module is named after its idea")


def test_only_the_command_prints():
    none((m.at(node.lineno) for m in MODULES if m.unit != "cli" for node in ast.walk(m.tree)
          if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"),
         "nothing but the command line prints")


def test_nothing_is_left_unfinished():
    none((f"{m.at(n)}: {line.strip()}" for m in MODULES for n, line in enumerate(m.text.splitlines(), 1)
          if re.search(r"\b(TODO|FIXME|XXX)\b", line)), "what is unfinished is an issue, not a comment")


def test_errors_say_what_to_do():
    def vague(node: ast.Raise) -> bool:
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return error is not None and ast.unparse(error) in ERRORS_THAT_SAY_NOTHING

    none((m.at(node.lineno) for m in MODULES for node in ast.walk(m.tree)
          if isinstance(node, ast.Raise) and vague(node)),
         f"raise UserError with a sentence, or a precise type; not {sorted(ERRORS_THAT_SAY_NOTHING)}")


def test_warnings_are_errors(pytestconfig):
    assert pytestconfig.getini("filterwarnings")[0] == "error"


TUTORIALS = [ROOT / "docs" / "start.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
"""Documents that compare and train longer: tests/test_docs.py runs them."""
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", SRC / "optscope" / "guide.md",
             *(path for path in sorted((ROOT / "docs").glob("*.md")) if path not in TUTORIALS)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_document(path)


def run_document(path):
    """Run a document's python blocks from top to bottom, as one program."""
    text, program = path.read_text(), {"__name__": path.stem.lower()}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if ">>>" not in block[1]:  # those are doctests, which pytest itself collects
            blank = "\n" * text.count("\n", 0, block.start(1))  # a traceback then names the document's line
            exec(compile(blank + block[1], str(path), "exec", dont_inherit=True), program)


def test_every_document_is_in_the_navigation():
    folder = ROOT / "docs"
    pages = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.md")
             if "_build" not in path.parts}
    found = {(path.parent.relative_to(folder) / name.lstrip("/")).as_posix() for path in folder.rglob("*.md")
             for block in re.findall(r"```{toctree}\n(?::[^\n]*\n)*(.*?)```", path.read_text(), re.DOTALL)
             for name in block.split()}
    below_the_reference = {"index", "public", "machines", "licences"}  # which scripts/reference.py writes
    none(sorted(pages - found - below_the_reference), "every page of docs/ is in a toctree, as of docs/choosing.md")


def test_settings_files_in_documents_are_settings(tmp_path):
    found = [block[1] for path in DOCUMENTS
             for block in re.finditer(r"^```toml\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)]
    assert found
    for text in found:
        (tmp_path / "settings.toml").write_text(text)
        rates = {tuple(one.lr or ()) for one in read_settings(tmp_path / "settings.toml").optimisers.values()}
        assert len({len(each) for each in rates}) == 1


SAMPLE = """
import torch.nn
from optscope.optim import rule
if TYPE_CHECKING:
    import pooch
def f():
    from scipy.stats import qmc, norm
    if x:
        import loky
"""


def test_imports_are_found_with_their_time():
    assert [(i.target, i.names, i.when) for i in imports(ast.parse(SAMPLE))] == [
        ("torch.nn", (), "start"), ("optscope.optim", ("rule",), "start"), ("pooch", (), "types"),
        ("scipy.stats", ("qmc", "norm"), "call"), ("loky", (), "call")]
