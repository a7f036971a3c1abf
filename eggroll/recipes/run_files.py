"""The files of a run folder, and the claim to one: quick to import, so that a refusal does not wait for Flax."""

from __future__ import annotations

from pathlib import Path

from eggroll.recipes.settings import SettingsError

CONFIG, METRICS, PARAMETERS, CURVE = "config.json", "metrics.jsonl", "parameters.npz", "curve.png"


def claim(path: Path, *, overwrite: bool = False) -> None:
    """Makes a run folder with its parents, or makes sure that it may be written to.

    Args:
        path: the folder.
        overwrite: whether a finished run in it may be replaced.

    Raises:
        SettingsError: the folder holds a finished run, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        finished = (path / PARAMETERS).exists()
    except OSError as why:
        raise not_writable(path, why) from why
    if finished and not overwrite:
        raise SettingsError(
            f"'{path}' holds a finished run; choose another folder with --out, or replace it with --overwrite."
        )


def not_writable(path: Path, why: OSError) -> SettingsError:
    """The error for a folder that the operating system refuses."""
    return SettingsError(f"cannot write to '{path}' ({why.strerror or why}); choose another folder with --out.")
