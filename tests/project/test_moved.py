"""Old import paths say where a thing lies now."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from eggroll.moved import MOVED, NAMES


@pytest.mark.parametrize("old", MOVED)
def test_a_module_that_moved_names_the_new_one(old: str) -> None:
    new = MOVED[old]
    assert importlib.util.find_spec(new) is not None
    with pytest.raises(ModuleNotFoundError, match=rf"{old} has moved to {new}: import it from there"):
        importlib.import_module(old)


RENAMED = [(module, name, new) for module, names in NAMES.items() for name, new in names.items()]


@pytest.mark.parametrize(("module", "name", "new"), RENAMED)
def test_a_name_that_moved_names_the_new_module(module: str, name: str, new: str) -> None:
    assert hasattr(importlib.import_module(new), name)
    with pytest.raises(ImportError, match=rf"{module}.{name} has moved to {new}"):
        exec(f"from {module} import {name}", {})
    with pytest.raises(AttributeError):
        _ = importlib.import_module(module).nothing_of_the_kind


def test_what_never_was_is_no_module() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'eggroll\.nothing'"):
        importlib.import_module("eggroll.nothing")
