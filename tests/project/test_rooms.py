"""The house: which room may import which, no circle anywhere, and rooms small enough to know."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"eggroll": ROOT / "eggroll", "eggroll.kernels": ROOT / "kernels" / "pallas"}
MOST_FILES = 12  # of a room, its `__init__.py` apart

# From where data starts to where users are: a room, or a single file that rooms share, imports from what stands before
# it. What has no line of its own belongs to the package that it lies in.
FLOW = (
    "eggroll.lazy",
    "eggroll.version",
    "eggroll.moved",
    "eggroll.training.errors",
    "eggroll.extras",
    "eggroll.importing",
    "eggroll.ops",
    "eggroll.kernels",
    "eggroll.engine",
    "eggroll.strategy.plan",
    "eggroll.strategy.noise",
    "eggroll.strategy.dependence",
    "eggroll.strategy.activations",
    "eggroll.strategy.population",
    "eggroll.strategy.serialization",
    "eggroll.strategy.state",
    "eggroll.strategy.evaluate",
    "eggroll.strategy.update",
    "eggroll.strategy.methods",
    "eggroll.strategy",
    "eggroll.nnx",
    "eggroll.training.optimizers",
    "eggroll.training.folder",
    "eggroll.training.processes",
    "eggroll.training.checkpoints",
    "eggroll.training.ledger",
    "eggroll.training",
    "eggroll.rl",
    "eggroll.llm.model",
    "eggroll.llm.answers",
    "eggroll.llm.tasks",
    "eggroll.llm.rewards",
    "eggroll.llm.finetuning",
    "eggroll.llm",
    "eggroll.recipes",
    "eggroll.commands",
    "eggroll",
)


def modules() -> dict[str, Path]:
    """Every module by its import name."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = file
    return found


def place(module: str) -> int:
    """Which line of the flow a module belongs to: the longest that it lies in."""
    inside = [room for room in FLOW if module == room or module.startswith(room + ".")]
    return FLOW.index(max(inside, key=len))


def imports(module: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a file imports, wherever in it and for whatever purpose."""
    found = set()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (above, node.module or "")))
            names = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {name if name in known else origin for name in names}
    return {name for name in found if name in known and name != module}


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    """Each module, and what it imports."""
    known = modules()
    return {name: imports(name, file, known) for name, file in known.items()}


def test_no_file_imports_in_a_circle(arrows):
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as why:
        pytest.fail(f"these files import each other: {' -> '.join(why.args[1])}")


def test_no_import_goes_against_the_flow(arrows):
    against = [f"{one} -> {other}" for one, others in arrows.items() for other in others if place(other) > place(one)]
    assert not against, f"imports of what comes later, see FLOW: {sorted(against)}"


def test_rooms_do_not_import_each_other(arrows):
    rooms: dict[str, set[str]] = {room: set() for room in FLOW}
    for one, others in arrows.items():
        rooms[FLOW[place(one)]] |= {FLOW[place(other)] for other in others} - {FLOW[place(one)]}
    TopologicalSorter(rooms).prepare()  # raises for a circle


def test_rooms_are_small_enough_to_know():
    files = Counter(file.parent for file in modules().values() if file.name != "__init__.py")
    crowded = {str(folder.relative_to(ROOT)): count for folder, count in files.items() if count > MOST_FILES}
    assert not crowded, f"more than {MOST_FILES} files in a room: {crowded}"


def test_a_circle_and_a_back_edge_would_be_seen():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    assert place("eggroll.engine.lowrank") < place("eggroll.strategy.es") < place("eggroll.cli")
