"""What a notebook shows: values as short text, tables without escape codes, progress as lines."""

from __future__ import annotations

import re

import pytest

SETUP = """
import eggroll, jax, jax.numpy as jnp
from eggroll.training import fit

def fitness(params, x):
    return -jnp.mean((x @ params["w"] - 1) ** 2)

params, x = {"w": jnp.zeros((8, 4))}, jnp.eye(8)
es = eggroll.ES(population=16, sigma=0.1)
state = es.init(params, jax.random.key(0))
members = es.ask(state)
explanation = eggroll.explain(fitness, params, x)
run = lambda: fit(es, state, fitness, [x], epochs=None, generations=20, progress=True)
"""
SHOWN = {
    "es": r"ES\(population=16, sigma=0\.1, rank=1\)",
    "state": r"State\(generation=0, params=<1 array, 32 numbers, float32>\)",
    "members": r"Members\(population=16, generation=0\)",
    "explanation": r"┏[^\x1b]*│ w  [^\x1b]*rank 1[^\x1b]*12 random numbers per pair of members",
    "print(explanation)": r"┏[^\x1b]*│ w  [^\x1b]*rank 1[^\x1b]*12 random numbers per pair of members\s*",
    "run()": r"generation 0/20  compiling\n+(generation \d+/20  fitness -\S+  .*\n+){10}Result\(ended='finished'.*",
}


@pytest.mark.slow
def test_values_tables_and_progress_are_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    import nbclient  # only here: the default run does without
    import nbformat

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    sources = [SETUP, *SHOWN]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert notebook.cells[0].outputs == []
    for cell in notebook.cells[1:]:
        shown = "".join(one.text if "text" in one else one.data["text/plain"] for one in cell.outputs)
        assert re.fullmatch(SHOWN[cell.source], shown, re.DOTALL), shown
