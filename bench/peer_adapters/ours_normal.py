"""eggroll with `distribution="normal"`, the noise that the peers draw."""

from __future__ import annotations

from bench.peer_adapters import Candidate, Work
from bench.peer_adapters.ours import GET, UNIT, dense_copies, version
from bench.peer_adapters.ours import prepare as prepare_ours

__all__ = ["GET", "NAME", "UNIT", "dense_copies", "prepare", "version"]
NAME = "eggroll, normal"


def prepare(work: Work) -> Candidate:
    """As ours, with normal noise."""
    return prepare_ours(work, "normal")
