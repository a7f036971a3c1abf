"""The folder of a run: its files, and the claim to it. Quick to import, so that a refusal does not wait for JAX."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eggroll.training.errors import RunError
from eggroll.training.folder.disk import MANIFEST, is_partial, not_writable, open_to_read, read_json, remove

CONFIG, METRICS, PARAMETERS, CURVE = "config.json", "metrics.jsonl", "parameters.npz", "curve.png"
LEDGER, INITIAL, CHECKPOINTS, TENSORBOARD = "ledger.bin", "initial.npz", "checkpoints", "tensorboard"
REPORTS = "reports.txt"  # the name that trackers have of the run
MAGIC = b"eggroll ledger 1\n"  # a ledger's first bytes
MODEL, SAMPLES, EVALUATION = "model", "samples.jsonl", "evaluation.json"  # of language models
COMPLETIONS = "completions"
# What a new run replaces.
FILES = (CONFIG, METRICS, PARAMETERS, CURVE, LEDGER, INITIAL, SAMPLES, EVALUATION, REPORTS, MANIFEST)
FOLDERS = (CHECKPOINTS, TENSORBOARD, MODEL, COMPLETIONS)


def claim(path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Makes a run folder with its parents, or makes sure that it may be written to.

    Args:
        path: the folder.
        overwrite: whether a run in it may be replaced.
        resume: whether a run in it goes on.

    Raises:
        RunError: the folder holds a run and neither is asked for, or both are, it holds a model or another program's
            configuration, or it cannot be made.
    """
    if overwrite and resume:
        raise RunError("got both --overwrite and --resume; one of them is required: start anew, or go on.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        found, foreign = holds_run(path), _foreign(path)
    except OSError as why:
        raise not_writable(path, why) from why
    if foreign is not None:
        raise RunError(
            f"'{path}' holds '{foreign}', which is no run's, as a model's folder does; a run there would replace or "
            "mix with it. Choose another folder with --out (folder=)."
        )
    if found and not (overwrite or resume):
        raise RunError(
            f"'{path}' holds a run; go on with it with --resume (in Python: resume=True), choose another folder with "
            "--out (folder=), or replace it with --overwrite (overwrite=True)."
        )


@contextmanager
def claimed(path: Path, *, overwrite: bool = False, resume: bool = False) -> Iterator[None]:
    """`claim`, for what follows: a folder that it made and nothing was written to is gone again if that fails."""
    new = False
    with suppress(OSError):  # `claim` says it
        new = not path.exists()
    claim(path, overwrite=overwrite, resume=resume)
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):  # not empty: a run has begun
                path.rmdir()
        raise


def holds_run(path: Path) -> bool:
    """Whether a run has left anything in the folder that is worth keeping."""
    checkpoints, metrics = path / CHECKPOINTS, path / METRICS
    return (
        holds_result(path)
        or (checkpoints.exists() and any(checkpoints.iterdir()))
        or (metrics.is_file() and metrics.stat().st_size > 0)
        or holds_records(path / LEDGER)
    )


def _foreign(path: Path) -> str | None:
    """What lies in the folder under a name of a run's, or beside it, and belongs to something else, such as a model."""
    weights = next(path.glob("*.safetensors"), None)
    if weights is not None:
        return weights.name
    try:
        config = read_json(path / CONFIG)
    except RunError:  # none, or damaged, which is told where it is read
        return None
    return CONFIG if "options" not in config else None


def read_config(folder: Path) -> dict[str, Any]:
    """The run's configuration.

    Raises:
        RunError: there is none, or it is none that a run wrote.
    """
    path = folder / CONFIG
    mend = "Without it nobody knows what the run in that folder was: restore it, or start anew with --overwrite."
    config = read_json(path, mend)
    every = config.get("checkpoint_every", 1)
    kinds = {"options": dict, "strategy": dict, "versions": dict, "changes": list}
    wrong = [name for name, kind in kinds.items() if not isinstance(config.get(name, kind()), kind)]
    changes = config.get("changes", [])
    if not wrong and not all(isinstance(each, dict) and type(each.get("generation")) is int for each in changes):
        wrong = ["changes"]
    wrong += ["checkpoint_every"] * (type(every) is not int or every < 1)
    if wrong or "options" not in config:
        what = f"'{wrong[0]}' is {config[wrong[0]]!r:.60}" if wrong else "it has no 'options'"
        raise RunError(f"cannot read '{path}' ({what}, which no run writes). {mend}")
    return config


def holds_result(path: Path) -> bool:
    """Whether a run in the folder came to an end and left what it was made for."""
    return (path / PARAMETERS).exists() or (path / MODEL).exists()


def holds_records(ledger: Path) -> bool:
    """Whether a ledger has more than what a run leaves that was killed before its first generation."""
    if not ledger.exists():
        return False
    with open_to_read(ledger) as file:
        return not MAGIC.startswith(file.read(len(MAGIC) + 1))


def clear(path: Path) -> None:
    """Removes what an earlier run left, and nothing else.

    Raises:
        RunError: something cannot be removed.
    """
    try:
        for name in FILES:  # a folder of such a name is none of ours, and an error
            (path / name).unlink(missing_ok=True)
        for name in FOLDERS:
            remove(path / name)
    except OSError as why:
        raise not_writable(path, why) from why


def sweep(path: Path) -> None:
    """Removes what a process left that was killed while it wrote a file or a model."""
    for left in path.glob(".*.partial"):
        if is_partial(left.name) and left.name.rsplit(".", 2)[0][1:] in (*FILES, *FOLDERS):
            with suppress(OSError):
                remove(left)


def check_kept(path: Path, model: str | Path, *, resume: bool = False) -> None:
    """Makes sure that a new run in the folder does not remove the model that it begins with.

    Args:
        path: the folder.
        model: a file or folder; anything else, such as a hub id, is kept anyway.
        resume: whether a run in the folder goes on, and so is kept.

    Raises:
        RunError: it is the folder, or part of a run in it, by whatever name or link.
    """
    own, found = path.resolve(), Path(model).resolve()
    if (resume and holds_run(path)) or not (os.path.exists(found) and found.is_relative_to(own)):
        return
    if found == own or found.relative_to(own).parts[0] in (*FILES, *FOLDERS):
        raise RunError(
            f"got the model '{model}' in the run folder '{path}', which would be cleared before the run; choose "
            "another folder with --out."
        )
