"""Several processes that make one run, through `jax.distributed`: start, agree, score, and stop when one is lost."""

from __future__ import annotations

from eggroll.training.processes.deciding import agree, same
from eggroll.training.processes.joining import start, stop
from eggroll.training.processes.scoring import Scores, local_members, score
from eggroll.training.processes.talk import count, is_main, lost, part, watching

__all__ = ["Scores", "agree", "count", "is_main", "local_members", "lost", "part", "same", "score", "start", "stop"]
__all__ += ["watching"]
