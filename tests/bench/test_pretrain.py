"""`bench.pretrain`: its law is that of the formula, and a quick run keeps what it has measured."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest

from bench import pretrain


def test_the_law_is_fitted_where_it_holds():
    pairs = (8, 32, 128)
    assert pretrain.competing(pairs, [math.sqrt(m / (m + 300)) for m in pairs]) == pytest.approx(300)
    assert pretrain.competing(pairs, [0.1, -0.1, 0.2]) is None


def test_windows_are_of_the_text():
    data = pretrain.text()
    assert len(data) > 300_000 and b"assignment" in data.tobytes()
    found = pretrain.windows(data, np.array([0, 70]), 9)
    assert found.tolist() == [list(data[:10]), list(data[70:80])]


@pytest.mark.slow
def test_a_quick_run_goes_on_with_what_is_kept(tmp_path, capsys):
    command = ["--quick", "--out", str(tmp_path), "--parts", "learning"]
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        pretrain.main(command)
    assert capsys.readouterr().out.count("seed") >= 6
    report = json.loads((tmp_path / "learning.json").read_text())
    assert {row["method"] for row in report["rows"]} == {"activations, own", "AdamW"}
    assert all(math.isfinite(row["loss"]) for row in report["rows"]) and (tmp_path / "learning.png").exists()
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.json") if path.parent != tmp_path}
    pretrain.main(command)
    assert kept == {path: path.read_bytes() for path in kept} and "seed 0:" not in capsys.readouterr().out
