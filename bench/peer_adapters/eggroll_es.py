"""eggroll-es: `EggrollTrainer.evolve` in PyTorch, in a process of its own.

Its import package is called `eggroll`, too. Measured is `evolve` for one generation with antithetic pairs (its
`population_size` counts pairs), centered ranks and gradient descent, its defaults; the reward is a callable of model
and batch, as its documentation has it, and takes member after member, for it loads every member's dense parameters
into the model. The layer's reward takes the next row at every call. Its noise is the product of two normals element
by element, summed over `rank`, so it is not low-rank, whatever its name. Left out: its vLLM backend, which needs vLLM
and language models.

EGGROLL_ES_PATH is a folder that `pip install --no-deps --target FOLDER eggroll-es` made, EGGROLL_ES_PYTHON an
interpreter that has PyTorch (this one, if not set). Inference is timed in the same process, in turns.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import sys

from bench.peer_adapters import Missing, Work

NAME = "eggroll-es"
GET = "pip install --no-deps --target FOLDER eggroll-es, set EGGROLL_ES_PATH to FOLDER; it needs PyTorch"
UNIT = "torch"
OWN_PROCESS = True


def version() -> str:
    """Version of the distribution in the folder."""
    path = os.environ.get("EGGROLL_ES_PATH")
    if not path or not (pathlib.Path(path) / "eggroll").is_dir():
        raise Missing(GET)
    if "EGGROLL_ES_PYTHON" not in os.environ and importlib.util.find_spec("torch") is None:
        raise Missing(GET)
    found = importlib.metadata.distributions(name="eggroll-es", path=[path])
    return next((one.version for one in found), "unknown")


def dense_copies(work: Work) -> float:
    """The noise; members are evaluated one after another."""
    return 1.0


def command() -> list[str]:
    """Starts the process; it reads a request from standard input and answers on standard output, in JSON."""
    script = pathlib.Path(__file__).with_name("eggroll_es_process.py")
    return [os.environ.get("EGGROLL_ES_PYTHON", sys.executable), str(script)]
