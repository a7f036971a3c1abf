"""The folder of a run: its files, and the claim to it. Quick to import, so that a refusal does not wait for JAX."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eggroll.training.errors import RunError

CONFIG, METRICS, PARAMETERS, CURVE = "config.json", "metrics.jsonl", "parameters.npz", "curve.png"
LEDGER, INITIAL, CHECKPOINTS, TENSORBOARD = "ledger.bin", "initial.npz", "checkpoints", "tensorboard"
MAGIC = b"eggroll ledger 1\n"  # a ledger's first bytes
MODEL, SAMPLES, EVALUATION = "model", "samples.jsonl", "evaluation.json"  # of language models
FILES = (CONFIG, METRICS, PARAMETERS, CURVE, LEDGER, INITIAL, SAMPLES, EVALUATION)  # what a new run replaces
FOLDERS = (CHECKPOINTS, TENSORBOARD, MODEL)


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
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or damaged, which is told where it is read
        return None
    return CONFIG if isinstance(config, dict) and "options" not in config else None


def holds_result(path: Path) -> bool:
    """Whether a run in the folder came to an end and left what it was made for."""
    return (path / PARAMETERS).exists() or (path / MODEL).exists()


def holds_records(ledger: Path) -> bool:
    """Whether a ledger has more than what a run leaves that was killed before its first generation."""
    if not ledger.exists():
        return False
    with ledger.open("rb") as file:
        return not MAGIC.startswith(file.read(len(MAGIC) + 1))


def clear(path: Path) -> None:
    """Removes what an earlier run left, and nothing else.

    Raises:
        RunError: something cannot be removed.
    """
    try:
        for name in FILES:
            (path / name).unlink(missing_ok=True)
        for name in FOLDERS:
            if (path / name).exists():
                shutil.rmtree(path / name)
    except OSError as why:
        raise not_writable(path, why) from why


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


def not_writable(path: Path, why: OSError) -> RunError:
    """The error for a folder that the operating system refuses."""
    return RunError(
        f"cannot write to '{path}' ({why.strerror or why}); make room and go on with --resume, or choose another "
        "folder with --out."
    )
