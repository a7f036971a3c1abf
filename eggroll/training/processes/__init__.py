"""Several processes that make one run, through `jax.distributed`: start, agree, score, and stop when one is lost."""

from __future__ import annotations

from eggroll.training.processes.joining import agree, same, start, stop, watching
from eggroll.training.processes.scoring import Scores, local_members, score
from eggroll.training.processes.talk import count, is_main, lost, part

__all__ = [
    "Scores",
    "agree",
    "count",
    "is_main",
    "local_members",
    "lost",
    "part",
    "same",
    "score",
    "start",
    "stop",
    "watching",
]
