"""Compares with what was kept: to the bit where the arithmetic is the same, elsewhere to rounding."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.training.kept.places import place

ROUNDING = 2e-6  # relative to the largest number of an array, in float32
HALF = 2**-7  # the same, where a number may be rounded to the next of half precision


def leaves(state: Any) -> dict[str, np.ndarray]:
    """What a state consists of, by part and number; without the key."""
    parts = {"params": state.params, "master": state.master, "opt_state": state.opt_state}
    return {f"{name}/{i}": np.asarray(x) for name, part in parts.items() for i, x in enumerate(jax.tree.leaves(part))}


def loaded(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; those of half precision as bytes, as NumPy knows them."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def exact(kind: Path) -> bool:
    """Whether what was kept has to be met to the bit here: it was made without flags for XLA, which may change bits."""
    return not os.environ.get("XLA_FLAGS") and json.loads((kind / "made.json").read_text(encoding="utf-8")) == place()


def assert_same(got: dict[str, Any], want: dict[str, np.ndarray], *, bits: bool) -> None:
    """The same arrays under the same names."""
    assert sorted(got) == sorted(want)
    for name, kept in want.items():
        array, kept = _typed(np.asarray(got[name])), _typed(kept)
        assert (array.dtype, array.shape) == (kept.dtype, kept.shape), name
        if bits or kept.dtype.kind not in "fV":
            assert array.tobytes() == kept.tobytes(), f"{name}: {array} instead of {kept}"
            continue
        wide = kept.astype(np.float64)
        bound = (ROUNDING if kept.dtype.itemsize >= 4 else HALF) * np.abs(wide).max(initial=1e-3)
        np.testing.assert_allclose(array.astype(np.float64), wide, rtol=0, atol=bound, err_msg=name)


def _typed(array: np.ndarray) -> np.ndarray:
    """NumPy's files know half precision as so many bytes."""
    return array.view(jnp.bfloat16) if array.dtype.kind == "V" and array.dtype != jnp.bfloat16 else array
