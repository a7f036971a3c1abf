"""Makes the runs that are kept; by hand, and only when a kind is new, by the code of its day.

    python -m tests.training.kept.make              # all that are not there yet
    python -m tests.training.kept.make normal train # these

Run in the repository's root on a CPU, without XLA_FLAGS and JAX_ variables.
The `made.json` of each kind says with which versions it was made and on what processor; all were made with JAX 0.10.2,
optax 0.2.8, Flax 0.12.8, Orbax 0.12.0, NumPy 2.1.0 and transformers 5.10.4 under Python 3.11.

A kind of `runs.py` has a folder with

    run/          what `fit` left, but for the last checkpoint and the lock: as if killed before it could save its end
    expected.npz  <generation>/<part>/<leaf> of the state in the middle and at the end, and the metrics in memory
    made.json     versions and processor

`train` and `finetune` have what the command line left, without pictures. The files of a run are as they were written;
the name of the operating system alone is shortened, so that no file names a machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.training import replay
from eggroll.training.checkpoints import arrays as checkpoints_arrays
from tests.cli.running import call
from tests.llm import tiny
from tests.llm.climbing import SIZES
from tests.training.kept.commands import METHODS, TRAIN, finetune
from tests.training.kept.comparing import leaves
from tests.training.kept.places import compiling, place
from tests.training.kept.runs import HERE, KINDS, LAST, MIDDLE, Kind, base

REWARD = '''"""A reward for the kept runs."""


def letters(text, problem):
    """The share of plain letters in an answer."""
    assert problem.data["topic"] in problem.prompt
    return sum("a" <= c.lower() <= "z" for c in text) / max(len(text), 1)
'''


def without_end(run: Path) -> None:
    """Takes away what a killed run would not have, and what tells nothing."""
    shutil.rmtree(run / "checkpoints" / str(LAST))
    for name in ("run.lock", "curve.png"):
        (run / name).unlink(missing_ok=True)


def make(name: str, kind: Kind) -> None:
    """A kind of `fit`."""
    run = Path(name, "run")
    checkpoints_arrays.SMALL = 0 if kind.tensorstore else 1 << 28
    seen: dict[int, Any] = {}
    if kind.changed:
        seen |= kind.run(run, MIDDLE)[1]
    result, more = kind.run(run, resume=bool(kind.changed), force=bool(kind.changed))
    states = {LAST: result.state}
    optimizer = kind.strategy().optimizer if name == "own" else None
    states[MIDDLE] = replay(base(kind.dtype), run / "ledger.bin", generation=MIDDLE, optimizer=optimizer)
    found = {f"{at}/{path}": leaf for at, state in states.items() for path, leaf in leaves(state).items()}
    found |= {f"{at}/metrics/{key}": x for at, metrics in {**seen, **more}.items() for key, x in metrics.items()}
    found |= {f"{LAST}/carry/{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(result.carry))}
    np.savez(Path(name, "expected.npz"), **found)
    without_end(run)


def make_train() -> None:
    """`eggroll train`, of the smallest of its models."""
    os.chdir("train")
    assert call(*TRAIN) == 0
    without_end(Path("run"))


def make_finetune() -> None:
    """`eggroll finetune` by both methods, of a model with one tiny layer."""
    os.chdir("finetune")
    tiny.folder(Path("base"), **SIZES, num_key_value_heads=1)
    Path("kept_rewards.py").write_text(REWARD, encoding="utf-8")
    lines = [json.dumps({"prompt": f"Write about {i}.", "topic": str(i)}) for i in range(10)]
    Path("prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.path.insert(0, "")
    for method in METHODS:
        assert call(*finetune(method)) == 0
        without_end(Path(method))


def main(names: list[str]) -> None:
    """Makes those that are named, or all that are missing."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    platform.platform = lambda *_, **__: f"{platform.system()}-{platform.machine()}"
    for name in names or [*KINDS, "train", "finetune"]:
        folder = HERE / name
        if folder.exists():
            if not names:
                continue
            shutil.rmtree(folder)
        folder.mkdir()
        kind = KINDS.get(name)
        with contextlib.chdir(HERE), compiling(kind is not None and kind.optimized):
            if kind is None:
                {"train": make_train, "finetune": make_finetune}[name]()
            else:
                make(name, kind)
        (folder / "made.json").write_text(json.dumps(place(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
