"""Noise by checksum: a seed means these bits, on every platform, in every version and by whatever program draws them.

Ledgers and papers count on it: a change to a number here is a breaking change.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from tests.strategy.single_stream import dense_noise, key_of, low_rank_factors

KEY = jax.random.key(5, impl="threefry2x32")
SHAPES = {"bias": (37,), "kernel": (6, 5), "stack": (3, 4, 2)}
AXES: Any = [
    ("bias", "dense"),
    ("kernel", eggroll.LowRankRule(left_axes=(0,), right_axes=(1,))),
    ("stack", eggroll.LowRankRule(left_axes=(0, 1), right_axes=(0, 2))),
]
STREAMS = {
    ("rademacher", 1): (927592530, 3915292873, 618235366),
    ("rademacher", 2): (2366940180, 4099299979, 1016789932),
    ("normal", 1): (1940703365, 3248897432, 1961856773),
    ("normal", 2): (2708646665, 3648809015, 483537914),
}
MEMBERS = {
    ("low rank", "rademacher", 1): (4078026226, 1197915842, 313904434),
    ("low rank", "rademacher", 2): (4078026226, 630685401, 30710881),
    ("low rank", "normal", 1): (2562496536, 472472374, 3949354844),
    ("full rank", "rademacher", 0): (2535030729, 855294820, 1850138601),
    ("full rank", "normal", 0): (935773887, 3891786680, 3889701862),
}


def checksum(array: Any) -> int:
    """Of float32, little endian; a zero has no sign."""
    return zlib.crc32((np.asarray(array) + np.float32(0)).astype("<f4").tobytes())


@pytest.mark.parametrize(("distribution", "rank"), STREAMS)
def test_the_sides_of_a_factor_and_dense_noise(distribution: str, rank: int) -> None:
    """By `jax.random` alone, which is what the library's draws are compared with."""
    key = key_of(KEY, "dense/kernel")
    left, right = low_rank_factors(key, 3, (33,), (21,), rank, distribution, "float32")
    found = left, right, dense_noise(key, 3, (33, rank), distribution, "float32")
    assert tuple(map(checksum, found)) == STREAMS[distribution, rank]


@pytest.mark.parametrize(("method", "distribution", "rank"), MEMBERS)
def test_the_noise_of_members(method: str, distribution: str, rank: int) -> None:
    """From parameters of zero by a sigma of one: no number is rounded but the product of two."""
    options: dict[str, Any] = {"population": 4, "sigma": 1.0, "distribution": distribution}
    if method == "full rank":
        es: eggroll.ES = eggroll.FullRankES(**options)
    else:
        es = eggroll.ES(**options, rank=rank, rules=AXES)
    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    members = es.ask(es.init(params, KEY))
    drawn = [members.materialize(i) for i in range(4)]
    found = tuple(checksum(np.stack([one[name] for one in drawn])) for name in SHAPES)
    assert found == MEMBERS[method, distribution, rank]
