"""`fit` in several processes: `python -m tests.training.process_fit_job SPEC`, a JSON object, in each of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.training import Checkpoints, processes
from tests.training.problems import run, strategy

LAST = 12


def main(spec: dict[str, Any]) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    me = spec["id"]
    options = {name: spec[name] for name in ("local_devices", "timeout", "lost_after") if name in spec}
    processes.start(spec["coordinator"], spec["processes"], me, **options)
    es = strategy(mesh=jax.make_mesh((jax.device_count(),), ("population",)))
    seen: list[int] = []

    def show(record: dict[str, Any]) -> None:
        seen.append(record["generation"])
        who, what = spec.get("signals", {}).get(str(record["generation"]), (None, None))
        if who == me:
            while spec.get("saved", 0) not in (0, *Checkpoints(Path(spec["run"]) / "checkpoints").generations()):
                time.sleep(0.01)  # it is saved while the generations after it run
            for _ in range(spec.get("times", 1)):
                os.kill(os.getpid(), getattr(signal, what))

    result = run(Path(spec["run"]), LAST, es=es, resume=True, show=show)
    log = {
        "params": jax.tree.map(lambda x: np.asarray(x).tolist(), result.state.params),
        "mean": float(result.carry["mean"]),
        "ended": result.ended,
        "resumed": result.resumed,
        "seen": seen,
    }
    (Path(spec["folder"]) / f"{me}.json").write_text(json.dumps(log), encoding="utf-8")
    processes.stop()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
