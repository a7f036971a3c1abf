"""Every example in a docstring runs and prints what it says.

Pytest's own collection would import `kernels/pallas/x.py` under another name than `eggroll.kernels.x`: a
second copy, with a registry of its own. So the modules are imported by their names here.
"""

from __future__ import annotations

import doctest
import importlib
import io
from pathlib import Path

import pytest

from tests.quick import quickest

ROOT = Path(__file__).parents[2]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules() -> list[str]:
    """Return the import names of all modules of the package."""
    found = []
    for name, directory in {"eggroll": "eggroll", "eggroll.kernels": "kernels/pallas"}.items():
        for file in (ROOT / directory).rglob("*.py"):
            parts = file.relative_to(ROOT / directory).with_suffix("").parts
            found.append(".".join((name, *(part for part in parts if part != "__init__"))))
    return sorted(name for name in set(found) if not name.endswith("__main__"))


# Their examples train or answer, and what they show has tests of its own.
LONG = ("eggroll.llm.answers.generation", "eggroll.nnx.es", "eggroll.recipes.models", "eggroll.strategy.full_rank")
LONG += ("eggroll.llm.answers.decoding", "eggroll.llm.model.decoder", "eggroll.nnx.gradient")
LONG += ("eggroll.rl", "eggroll.rl.networks", "eggroll.rl.policies")


@pytest.mark.parametrize("name", quickest(modules(), *(name for name in modules() if name not in LONG)))
def test_examples(name):
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for examples in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name)):
        runner.run(examples, out=report.write)
    assert not runner.failures, report.getvalue()
