"""Rules of this code base that no linter knows: the tree of imports, who may wait, how long things are."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("protocol", "store", "gateway")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TEST_MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))

FORBIDDEN_IMPORTS = {
    "protocol": {"store", "gateway", "tests", "trio", "socket", "time", "logging", "structlog", "threading", "asyncio"},
    "store": {"gateway", "tests", "trio", "socket", "asyncio"},
    "gateway": {"tests", "asyncio", "threading"},
}
MAY_PRINT = {"gateway/cli.py", "store/check.py"}
MAY_USE_THREADS = {"gateway/storage.py"}
MAY_CATCH_EVERYTHING = {
    "gateway/routing.py",  # a defect of a handler is the answer SYSTEM_ERROR
    "gateway/scrape.py",  # a defect of a metric is the answer 500
    "gateway/server.py",  # a defect that one peer meets must not cost the others their connections
    "gateway/cli.py",  # the end of the process
}
ROOT_ENTRIES = {
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "bin",
    "conf",
    "gateway",
    "grafana",
    "protocol",
    "pyproject.toml",
    "store",
    "tests",
}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 90


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), str(module))


def imported(module: Path) -> Iterator[str]:
    """The first part of every imported name, imports inside functions and for type checking included."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            yield (node.module or "").partition(".")[0]


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression of that shape, else an empty text."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(module: Path) -> Iterator[tuple[str, int]]:
    """Dotted name and line of every call."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node.lineno


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_one_way(module: Path) -> None:
    assert set(imported(module)) & FORBIDDEN_IMPORTS[module.parts[0]] == set()


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] == "gateway"], ids=str)
def test_state_knows_no_handler_and_a_handler_no_app(module: Path) -> None:
    names = {node.module for node in ast.walk(tree(module)) if isinstance(node, ast.ImportFrom) and node.module}
    if module.name not in ("app.py", "cli.py"):
        assert not {name for name in names if name.endswith(".app")}
    if module.name == "state.py":
        assert not {name for name in names if "handlers" in name}
    if module.as_posix() == "gateway/storage.py":
        assert not {name for name in names if name.startswith(("gateway.broker", "gateway.namesrv"))}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_waiting_and_printing_have_their_places(module: Path) -> None:
    """Threads are used in one module, nobody sleeps the whole loop, and stdout belongs to the commands."""
    path = module.as_posix()
    found = [f"{path}:{line}: {name}" for name, line in calls(module) if name in ("time.sleep", "sleep")]
    if path not in MAY_PRINT:
        found += [f"{path}:{line}: {name}" for name, line in calls(module) if name in ("print", "sys.stdout.write")]
    if path not in MAY_USE_THREADS:
        found += [
            f"{path}:{node.lineno}: {dotted(node)}"
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Attribute) and node.attr == "to_thread"
        ]
    assert found == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_channels_have_a_bound(module: Path) -> None:
    text = (ROOT / module).read_text(encoding="utf-8")
    assert not re.search(r"open_memory_channel(\[[^]]*\])?\(\s*(math\.)?inf", text)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_handler_hides_a_defect(module: Path) -> None:
    """Catching everything is for the few places that turn a defect into an answer, or raise it again."""
    for node in ast.walk(tree(module)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = dotted(node.type) if node.type else "everything"
        raises_again = any(isinstance(part, ast.Raise) and part.exc is None for part in ast.walk(node))
        if caught in ("everything", "Exception", "BaseException") and not raises_again:
            assert module.as_posix() in MAY_CATCH_EVERYTHING, f"{module}:{node.lineno}: catches {caught}"


@pytest.mark.parametrize("module", MODULES + TEST_MODULES, ids=str)
def test_every_module_says_what_it_owns(module: Path) -> None:
    assert ast.get_docstring(tree(module))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_files_and_functions_have_a_readable_length(module: Path) -> None:
    lines = len((ROOT / module).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{module} has {lines} lines"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{module}:{node.lineno}: {node.name} has {length} lines"


def text_files() -> list[Path]:
    ignored = {"data", "__pycache__", "nohup.out"}
    folders = [ROOT / name for name in ROOT_ENTRIES if (ROOT / name).is_dir()]
    files = [path for folder in folders for path in folder.rglob("*") if not ignored & set(path.parts)]
    files += [ROOT / name for name in (*ROOT_ENTRIES, ".gitignore", ".ci/run")]
    return [path for path in files if path.is_file() and path.suffix not in (".jar", ".class", ".png", ".bin")]


def test_no_path_of_a_developers_machine_and_no_promise_of_later_work() -> None:
    pattern = re.compile(r"[/](work|root|Users)/|C:[\\]|[T]ODO|[F]IXME")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_the_root_stays_small() -> None:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    made = {line.strip("/") for line in lines}
    present = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {name for name in present - made if not name.endswith(".egg-info")} <= ROOT_ENTRIES
