"""The rules of the house that no linter knows."""

import ast
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from statistics import median

import grimp
import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).resolve().parents[2]
ROOTS = ("hedgerow", "edge_node", "gateway", "aggregator", "sims")
MAX_FILE, MAX_FUNCTION, MAX_CLASS = 400, 70, 200
MEDIAN_FUNCTION = 10
# One base is no hierarchy: these say what kind of thing a class is.
KINDS = {
    "AbstractEventLoop",
    "Enum",
    "Exception",
    "Generic",
    "NamedTuple",
    "Protocol",
    "StrEnum",
    "Struct",
    "TypedDict",
}
HOMES = {
    "aiohttp": ["hedgerow.runtime.http*", "hedgerow.runtime.health", "aggregator.web.*"],
    "amqtt": ["hedgerow.runtime.embedded_broker"],
    "jinja2": ["aggregator.web.*", "sims.report.*"],
    "matplotlib": ["hedgerow.planning.plot", "hedgerow.up.plot", "sims.report.*"],
    "msgpack": ["hedgerow.core.codec"],
    "paho": ["hedgerow.runtime.mqtt*"],
    "prometheus_client": ["hedgerow.runtime.metrics"],
    "psutil": ["hedgerow.up.usage"],
    "rich": ["hedgerow.custody.*", "hedgerow.planning.*", "hedgerow.up.*", "sims.*"],
    "safetensors": [
        "aggregator.model_files",
        "hedgerow.custody.replay",
        "hedgerow.planning.params",
    ],
    "sklearn": ["hedgerow.runtime.sources"],
    "sqlite3": [
        "hedgerow.custody.*",
        "hedgerow.runtime.store*",
        "aggregator.ledger*",
        "edge_node.outbox",
        "gateway.spool",
    ],
    "structlog": ["hedgerow.runtime.logs", "hedgerow.runtime.metrics"],
    "tinygrad": [
        "hedgerow.runtime.buffers",
        "hedgerow.runtime.layers",
        "hedgerow.runtime.memory",
        "hedgerow.runtime.mobilenet",
        "hedgerow.runtime.model*",
        "hedgerow.runtime.stages",
        "hedgerow.runtime.tasks",
        "edge_node.design",
        "edge_node.frozen",
        "edge_node.jitcache",
        "edge_node.lean",
        "edge_node.micro",
        "edge_node.oracle",
        "edge_node.stacked",
        "edge_node.trainer",
    ],
    "uvloop": ["hedgerow.runtime.service"],
}


def sources() -> list[Path]:
    return [path for root in ROOTS for path in sorted((ROOT / root).rglob("*.py"))]


FILES = sources()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(), name_of(path)))


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_functions_and_classes_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines(node) <= MAX_FUNCTION, node.name
        if isinstance(node, ast.ClassDef):
            assert lines(node) < MAX_CLASS, node.name


def test_most_functions_are_shorter_still() -> None:
    functions = [
        lines(node)
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert median(functions) <= MEDIAN_FUNCTION


def base_name(base: ast.expr) -> str:
    while isinstance(base, ast.Subscript):
        base = base.value
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def test_no_class_inherits_from_one_that_inherits() -> None:
    """Depth 1, but for the roots of the messages, the configuration and the errors."""
    parents = {
        node.name: {base_name(base) for base in node.bases}
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.ClassDef)
    }
    for name, bases in parents.items():
        for base in bases & parents.keys():
            deeper = parents[base] - KINDS
            if "HedgerowError" not in deeper | {base}:
                assert not deeper, f"{name} -> {base} -> {deeper}"


def test_layers_and_purity(capfd: pytest.CaptureFixture[str]) -> None:
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == EXIT_STATUS_SUCCESS, capfd.readouterr().out


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*ROOTS, include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("library", HOMES)
def test_every_library_has_one_home(library: str, graph: grimp.ImportGraph) -> None:
    importers = graph.find_modules_that_directly_import(library)
    assert importers, f"nothing imports {library}: take it out of this list"
    for module in importers:
        assert any(fnmatch(module, home) for home in HOMES[library]), f"{module} imports {library}"


def test_the_list_of_packages_is_what_there_is() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for root in ROOTS
        for path in (ROOT / root).rglob("__init__.py")
    }
    mapped = set(settings["package-dir"])
    assert set(settings["packages"]) == there | mapped
    assert all((ROOT / folder).is_dir() for folder in settings["package-dir"].values())


def test_every_folder_with_code_is_a_package() -> None:
    for path in FILES:
        assert (path.parent / "__init__.py").exists(), name_of(path)
