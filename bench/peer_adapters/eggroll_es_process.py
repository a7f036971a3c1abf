"""The process in which eggroll-es runs: ours must not be importable here until theirs is imported."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any


def import_theirs() -> Any:
    """Their package `eggroll`, from the folder that EGGROLL_ES_PATH names."""
    folder = pathlib.Path(os.environ["EGGROLL_ES_PATH"]).resolve()
    sys.path.insert(0, str(folder))
    import eggroll

    if folder not in pathlib.Path(str(eggroll.__file__)).resolve().parents:
        raise ImportError(f"got eggroll from {eggroll.__file__}; the one in {folder} is required.")
    return eggroll


def stepper(theirs: Any, work: Any) -> Callable[[], None]:
    """One generation of their trainer."""
    from bench.peer_adapters import torch_models

    inputs, labels = torch_models.rows(work)
    loss = torch_models.loss(work)
    config = theirs.EggrollConfig(
        population_size=work.population // 2,  # pairs
        rank=work.rank,
        sigma=work.sigma,
        lr=work.learning_rate,
        generations=1,
        device=torch_models.device(),
    )
    member = 0

    def reward(model: Any, batch: dict[str, Any]) -> float:
        nonlocal member
        inputs = batch["inputs"]
        if work.name == "layer":
            inputs = inputs[member % work.population : member % work.population + 1]
            member += 1
        return -loss(model(inputs), batch["labels"]).item()

    trainer = theirs.EggrollTrainer(torch_models.network(work), config, reward)

    def step() -> None:
        trainer.evolve([{"inputs": inputs, "labels": labels}])
        torch_models.synchronise()

    return step


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    theirs = import_theirs()
    sys.path.append(str(pathlib.Path(__file__).parents[2]))  # last: `eggroll` is theirs here
    from bench.peer_adapters import Work, torch_models
    from bench.peer_adapters.memory import peak_bytes

    request = json.loads(sys.stdin.read())
    work = Work(**request["work"])
    torch_models.threads()
    answer: dict[str, Any] = {"step": [], "inference": []}
    with contextlib.redirect_stdout(io.StringIO()):  # it reports on its progress
        step = stepper(theirs, work)
        answer["bytes_before"] = peak_bytes()
        step()
        answer["bytes_peak"] = peak_bytes()
        if request["rounds"]:
            inference = torch_models.inference(work, torch_models.network(work))
            inference()
        for _ in range(request["rounds"]):
            answer["step"].append(timed(step))
            answer["inference"].append(timed(inference))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
