"""A bench is run by hand, so the default suite looks at one thing alone: that each script starts."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
SMOKE = "test_smoke.py"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out what the default run would import, which takes both of its processes long, to deselect it then."""
    name = collection_path.name
    other = collection_path.parent == HERE and name.startswith("test_") and name != SMOKE
    return True if other and config.option.markexpr == "not slow" else None


@pytest.fixture(autouse=True)
def single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is one call: a bench's smallest run goes through the script, and nothing is measured by it."""
    from bench.tools.timing import interleave  # only here: it brings JAX

    monkeypatch.setitem(interleave.__kwdefaults__, "least_seconds", 0.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what is not a smoke test."""
    for item in items:
        if item.path.parent == HERE and item.path.name != SMOKE:
            item.add_marker(pytest.mark.slow)
