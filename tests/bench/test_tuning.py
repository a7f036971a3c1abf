"""`bench.tuning`: its pole falls as its equations say, and a quick run compares what was chosen with a grid."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import tuning
from bench.tools import works


@pytest.fixture(autouse=True)
def mixed():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, and so do scripts
        yield


def steps_of_a_pole(push: float, begun: np.ndarray) -> int:
    """Steps until the pole or the cart is out of bounds, pushed one way; in NumPy."""
    x, v, angle, turning = begun
    for count in range(500):
        pushed = (push + 0.05 * turning**2 * np.sin(angle)) / 1.1
        falls = (9.8 * np.sin(angle) - np.cos(angle) * pushed) / (0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1))
        goes = pushed - 0.05 * falls * np.cos(angle) / 1.1
        x, v, angle, turning = x + 0.02 * v, v + 0.02 * goes, angle + 0.02 * turning, turning + 0.02 * falls
        if abs(x) >= 2.4 or abs(angle) >= 0.2095:
            return count + 1
    return 500


@pytest.mark.slow
def test_a_pole_falls_as_its_equations_say():
    work = works.WORKS["cartpole"]()
    params = jax.tree.map(jnp.zeros_like, work.start(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(3), 5)
    begun = [np.asarray(jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), np.float64) for key in keys]
    for side, push in ((0, -10.0), (1, 10.0)):  # the bias decides alone
        params[-1]["b"] = jnp.zeros(2).at[side].set(1.0)
        assert float(work.fitness(params, keys)) == pytest.approx(np.mean([steps_of_a_pole(push, b) for b in begun]))


@pytest.mark.slow
def test_a_quick_run_compares_what_is_chosen_with_a_grid(tmp_path, capsys):
    tuning.main(["--quick", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["rows"]
    assert [row["setting"] for row in rows] == ["grid"] * 4 + ["automatic", "automatic, falling"]
    assert max(row["share"] for row in rows[:4]) == 1 and found["summary"]["automatic"] > 0.9
    capsys.readouterr()
    tuning.main(["--quick", "--out", str(tmp_path / "found.json")])  # kept, and not measured again
    assert json.loads(capsys.readouterr().out) == found["summary"]
    found["rows"][0]["error"] = 123.0
    (tmp_path / "found.json").write_text(json.dumps(found))
    tuning.main(["--quick", "--again", "chosen", "--out", str(tmp_path / "found.json")])  # against the kept grid
    again = json.loads((tmp_path / "found.json").read_text())
    assert again["rows"][0]["error"] == 123.0 and again["summary"] == found["summary"]
