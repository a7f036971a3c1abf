"""A bench is run by hand, so the default suite looks at one thing alone: that each script starts."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what is not a smoke test."""
    for item in items:
        if HERE in item.path.parents and item.path.name != "test_smoke.py":
            item.add_marker(pytest.mark.slow)
