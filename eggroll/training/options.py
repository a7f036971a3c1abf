"""What every run can be asked for, and the checks of what was asked. Quick to import, so that help does not wait."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import get_args

from eggroll.extras import check_installed
from eggroll.training.errors import RunError

# Where and how often a run is written, and when it pauses: not what it computes.
UNDECIDING = frozenset(
    {"out", "overwrite", "resume", "force", "checkpoint_every", "keep", "keep_best", "time_limit", "tensorboard"}
    | {"workers", "samples", "reward_env"}
)
MAX_SEED = 2**31 - 1  # what a key is made from without 64-bit integers
LEAST = {"generations": 1, "seed": 0, "checkpoint_every": 1, "keep": 1, "keep_best": 0, "patience": 0}


class SettingsError(RunError):
    """A run that cannot start because of what was asked for."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the settings of all runs have.

    Attributes:
        generations: number of updates.
        seed: decides everything that is drawn; 0 to 2³¹ − 1.
        out: the run folder; None: `runs/` and the name of the run.
        overwrite: whether a run in that folder may be replaced.
        resume: whether a run in that folder goes on, from its newest whole checkpoint.
        force: whether it may go on with other settings.
        checkpoint_every: generations between two checkpoints.
        keep: newest checkpoints that are kept.
        keep_best: checkpoints of the highest held-out score that are kept besides.
        patience: measurements of the held-out score that may bring nothing better before the run ends; 0: it goes on.
        time_limit: seconds after which the run saves and ends; None: no limit.
        tensorboard: whether TensorBoard's files are written.
    """

    generations: int = 100
    seed: int = 0
    out: Path | None = None
    overwrite: bool = False
    resume: bool = False
    force: bool = False
    checkpoint_every: int = 50
    keep: int = 2
    keep_best: int = 1
    patience: int = 0
    time_limit: float | None = None
    tensorboard: bool = False

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        return "run"

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path("runs") / self.name if self.out is None else Path(self.out)

    def to_json(self) -> dict[str, object]:
        """The settings as JSON can hold them; those in `UNDECIDING` do not decide what the run computes."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)} | {"out": self.folder}
        return {name: x.as_posix() if isinstance(x, PurePath) else x for name, x in plain.items()}

    def check(self, least: Iterable[tuple[str, int]] = (), positive: Iterable[str] = ()) -> None:
        """Raises unless every number is one that a run can use.

        Args:
            least: names of further integers, with the least that each may be; None is allowed where it is the value.
            positive: names of further numbers that have to be finite and > 0; None as above.

        Raises:
            SettingsError: some is not.
        """
        for name, number in [*LEAST.items(), *least]:
            check_count(name, getattr(self, name), number)
        if self.force and not self.resume:
            raise SettingsError("got --force without --resume: only a run that goes on can have changed settings.")
        if self.tensorboard:
            check_tensorboard()
        if self.seed > MAX_SEED:
            raise SettingsError(f"got seed={self.seed}; at most {MAX_SEED} is required.")
        for name in ("time_limit", *positive):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))


def check_tensorboard() -> None:
    """Raises `RunError` where TensorBoard's files cannot be written: before a run begins, or is overwritten."""
    check_installed("tensorboardX", "TensorBoard's files")


def check_choice(name: str, value: object, choices: object) -> None:
    """Raises `SettingsError` unless `value` is one of those of the `Literal` `choices`."""
    if value not in get_args(choices):
        raise SettingsError(f"got {name}={value!r}; one of {', '.join(map(repr, get_args(choices)))} is required.")


def check_count(name: str, value: object, least: int) -> None:
    """Raises `SettingsError` unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"got {name}={value!r}; an integer of at least {least} is required.")


def check_positive(name: str, value: float) -> None:
    """Raises `SettingsError` unless `value` is a finite number > 0."""
    if not 0 < value < math.inf:
        raise SettingsError(f"got {name}={value!r}; a finite number > 0 is required.")


def check_pairs(population: int) -> None:
    """Raises `SettingsError` for an odd population of antithetic pairs."""
    if population % 2:
        raise SettingsError(
            f"got population={population}; an even number is required, because members come in pairs with opposite "
            f"noise. Use {population + 1}."
        )
