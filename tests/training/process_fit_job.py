"""`fit` in several processes: `python -m tests.training.process_fit_job SPEC`, a JSON object, in each of them.

`own` says what else one of them is told; with `by_jax` they are joined as by a user who does not know `processes`.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.training import Checkpoints, Saving, processes
from tests.training.problems import batches, run, strategy

LAST = 12


def main(spec: dict[str, Any]) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    me = spec["id"]
    join(spec, me)
    spec |= spec.get("own", {}).get(str(me), {})
    es = strategy(mesh=jax.make_mesh((jax.device_count(),), ("population",)), **spec.get("strategy", {}))
    seen: list[int] = []

    def show(record: dict[str, Any]) -> None:
        seen.append(record["generation"])
        who, what = spec.get("signals", {}).get(str(record["generation"]), (None, None))
        if who == me:
            while spec.get("saved", 0) not in (0, *Checkpoints(Path(spec["run"]) / "checkpoints").generations()):
                time.sleep(0.01)  # it is saved while the generations after it run
            for _ in range(spec.get("times", 1)):
                os.kill(os.getpid(), getattr(signal, what))
        if spec.get("error") == [me, record["generation"]]:
            raise ZeroDivisionError("a bug in one process")

    options = {name: spec[name] for name in ("evaluate_every",) if name in spec}
    if "batches" in spec:
        options["data"] = iter(list(itertools.islice(batches(), spec["batches"])))
    if "ends" in spec:
        options["data"] = itertools.islice(batches(), spec["ends"])  # of which nobody knows it
    if "mean" in spec:
        options["carry"] = {"mean": np.float32(spec["mean"])}
    if "every" in spec:
        options["saving"] = Saving(every=spec["every"])
    result = run(Path(spec["run"]), spec.get("generations", LAST), es=es, resume=True, show=show, **options)
    log = {
        "params": jax.tree.map(lambda x: np.asarray(x).tolist(), result.state.params),
        "mean": float(result.carry["mean"]),
        "ended": result.ended,
        "resumed": result.resumed,
        "seen": seen,
    }
    (Path(spec["folder"]) / f"{me}.json").write_text(json.dumps(log), encoding="utf-8")
    if not spec.get("by_jax"):
        processes.stop()


def join(spec: dict[str, Any], me: int) -> None:
    if spec.get("by_jax"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        lost = {name: spec["lost_after"] for name in ("heartbeat_timeout_seconds", "shutdown_timeout_seconds")}
        jax.distributed.initialize(spec["coordinator"], spec["processes"], me, **lost)
    else:
        options = {name: spec[name] for name in ("local_devices", "timeout", "lost_after") if name in spec}
        processes.start(spec["coordinator"], spec["processes"], me, **options)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
