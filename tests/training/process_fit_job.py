"""`fit` in several processes: `python -m tests.training.process_fit_job SPEC`, a JSON object, in each of them.

`own` says what else one of them is told, `refused` which runs come before and raise; with `by_jax` they are joined as
by a user who does not know `processes`.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.training import Checkpoints, Result, Saving, processes
from tests.training.problems import batches, run, strategy
from tests.training.process_launch import keep_no_programs, keep_programs_of_each, why

LAST = 12


def main(spec: dict[str, Any]) -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    keep_programs_of_each()
    join(spec, spec["id"])
    # One after the other in the same processes: what all of them refuse leaves them able to go on.
    refused = [why(partial(go, spec | other)) for other in spec.get("refused", ())]
    result, seen = go(spec)
    log = {
        "params": jax.tree.map(lambda x: np.asarray(x).tolist(), result.state.params),
        "mean": float(result.carry["mean"]),
        "ended": result.ended,
        "resumed": result.resumed,
        "seen": seen,
        "refused": refused,
    }
    (Path(spec["folder"]) / f"{spec['id']}.json").write_text(json.dumps(log), encoding="utf-8")
    if not spec.get("by_jax"):
        processes.stop()


def go(spec: dict[str, Any]) -> tuple[Result, list[int]]:
    """The run, and the generations that were shown."""
    me = spec["id"]
    spec = spec | spec.get("own", {}).get(str(me), {})
    es = strategy(mesh=jax.make_mesh((jax.device_count(),), ("population",)), **spec.get("strategy", {}))
    seen: list[int] = []

    def show(record: dict[str, Any]) -> None:
        seen.append(record["generation"])
        if len(seen) == 2:
            keep_no_programs(spec)
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
    folder, generations = Path(spec["run"]), spec.get("generations", LAST)
    return run(folder, generations, es=es, resume=True, show=show, **options), seen


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
