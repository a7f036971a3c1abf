"""What every run can be asked for: each setting once, with its type, default, help and check. Quick to import.

A settings class is what functions take and what the command line reads: the text under a field is its help.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from errno import ELOOP, ENAMETOOLONG
from functools import cache
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from eggroll.engine.checks import LARGEST, is_of
from eggroll.extras import check_installed
from eggroll.training.errors import RunError, abridged, check_known
from eggroll.training.folder.disk import not_writable
from eggroll.training.folder.integrity import check_run
from eggroll.training.folder.layout import CONFIG, holds_run, read_config
from eggroll.training.folder.settings import CONFIGURATION, NOTHING, as_json, check_same

# Where and how often a run is written, and when it pauses: not what it computes.
UNDECIDING = frozenset(
    {"out", "overwrite", "resume", "force", "checkpoint_every", "keep", "keep_best", "time_limit", "tensorboard"}
    | {"workers", "samples", "reward_env", "log_completions", "report_to"}
    | {"push_to_hub", "hub_model_id", "hub_private_repo"}
)
OF_THE_CALL = {"out", "overwrite", "resume", "force"}  # what a run that goes on does not have from its start
Reporter = Literal["wandb", "trackio"]
P = ParamSpec("P")
SettingsT = TypeVar("SettingsT")


class SettingsError(RunError):
    """A run that cannot start because of what was asked for."""


@dataclass(frozen=True)
class Option:
    """What a setting may be, and how `--help` shows it: stands in its annotation.

    Attributes:
        default: what help says of a default that says nothing by itself, as None does; "": the default.
        metavar: what help writes for a value; "": that of the type.
        least, most: what an integer is between; None as the least: it is no count.
        positive: whether a number has to be finite and > 0.
        repeated: whether the option is given once for each of several values.
        absent: what runs of earlier versions were, which could not choose: it is not written down. Default: they could.
    """

    default: str = ""
    metavar: str = ""
    least: int | None = None
    most: int = LARGEST
    positive: bool = False
    repeated: bool = False
    absent: Any = NOTHING


@cache
def options_of(settings: type) -> dict[str, tuple[Any, Option]]:
    """Type and option of every setting by name, those of the class itself before those of its bases."""
    hints, known = get_type_hints(settings, include_extras=True), {field.name for field in fields(settings)}
    names = dict.fromkeys(name for kind in settings.__mro__ for name in inspect.get_annotations(kind) if name in known)
    parts = {name: get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],) for name in names}
    return {name: (kind, more[0] if more else Option()) for name, (kind, *more) in parts.items()}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Settings that are checked by their annotations."""

    def check(self) -> None:
        """Raises `SettingsError` for a value that cannot be used."""
        for name, (kind, option) in options_of(type(self)).items():
            value: Any = getattr(self, name)
            if value is None and type(None) in get_args(kind):
                continue
            word = next((each for each in (kind, *get_args(kind)) if get_origin(each) is Literal), None)
            if word is not None and not (isinstance(value, float | int) and float in get_args(kind)):
                check_choice(name, value, word)
            elif option.positive:
                check_positive(name, value)
            elif option.least is not None:
                check_count(name, value, option.least, option.most)
            elif not is_of(value, kind):
                raise SettingsError(f"got {name}={value!r:.40}; {getattr(kind, '__name__', kind)} is required.")
            for path in value if isinstance(value, tuple) else (value,):
                if Path in (kind, *get_args(kind)) and isinstance(path, PurePath | str):
                    check_path(name, path)


@dataclass(frozen=True, kw_only=True)
class RunSettings(Checked):
    """What the settings of all runs have: where and how often a run is written, and what ends it."""

    _own: ClassVar[str] = ""  # a setting that runs of this kind alone have
    may_change: ClassVar[frozenset[str]] = UNDECIDING  # settings that a run may go on with others of

    generations: Annotated[int, Option(least=1)] = 100
    """Number of updates."""
    seed: Annotated[int, Option(least=0)] = 0
    """Decides everything that is drawn; 0 to 2³¹ − 1."""
    out: Annotated[Path | None, Option("runs/NAME")] = None
    """Run folder."""
    overwrite: bool = False
    """Replace a run in the folder."""
    resume: bool = False
    """Go on with the run in the folder, from its newest whole checkpoint; start if there is none. Options that are not
    given are those that it was begun with."""
    force: bool = False
    """Resume although settings changed."""
    checkpoint_every: Annotated[int, Option(least=1)] = 50
    """Generations between two checkpoints; there is one at the end, too."""
    keep: Annotated[int, Option(least=1)] = 2
    """Newest checkpoints that are kept."""
    keep_best: Annotated[int, Option(least=0)] = 1
    """Checkpoints of the highest held-out score that are kept besides."""
    patience: Annotated[int, Option(least=0)] = 0
    """Measurements of the held-out score that may bring nothing better before the run ends; 0: it goes on."""
    time_limit: Annotated[float | None, Option("none", "SECONDS", positive=True)] = None
    """Save and end after this time; --resume goes on."""
    tensorboard: bool = False
    """Write TensorBoard's files, too (needs the extra `tensorboard`)."""
    report_to: Annotated[tuple[str, ...], Option("none", "{wandb,trackio}", absent=())] = ()
    """Tell Weights & Biases or trackio every generation's numbers (extras `wandb` and `trackio`)."""

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        return "run"

    def of_fit(self, facts: Mapping[str, object] | None = None) -> dict[str, Any]:
        """What `eggroll.training.fit` takes of them; `facts` are recorded with them, and decide the run, too."""
        run = {"generations": self.generations, "seconds": self.time_limit, "folder": self.folder}
        told = {"settings": {**self.to_json(), **(facts or {})}, "may_change": self.may_change}
        return {**run, **told, "resume": self.resume, "overwrite": self.overwrite, "force": self.force}

    def of_saving(self) -> dict[str, Any]:
        """What `eggroll.training.Saving` takes of them."""
        kept = {"every": self.checkpoint_every, "keep": self.keep, "best": self.keep_best}
        return {**kept, "tensorboard": self.tensorboard, "report_to": self.report_to}

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path("runs") / self.name if self.out is None else Path(self.out)

    def to_json(self) -> dict[str, object]:
        """The settings as JSON can hold them; those in `UNDECIDING` do not decide what the run computes.

        Without what runs of earlier versions could not choose, where it is as then.
        """
        options = options_of(type(self)).items()
        plain = {n: getattr(self, n) for n, (_, option) in options if getattr(self, n) != option.absent}
        return json.loads(json.dumps(plain | {"out": self.folder}, default=PurePath.as_posix))

    def check(self) -> None:
        """Raises `SettingsError` for a value that no run can use."""
        super().check()
        if self.force and not self.resume:
            raise SettingsError("got --force without --resume: only a run that goes on can have changed settings.")
        check_told(self.tensorboard, self.report_to)


def from_json(settings: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options`, as `to_json` wrote them, that a settings class has and that are not None.

    What earlier versions could not choose, and is not written down, is as it was there.

    Example:
        >>> from_json(RunSettings, {"out": "runs/a", "keep": 3, "time_limit": None, "of_another_version": 1})
        {'out': PosixPath('runs/a'), 'keep': 3, 'report_to': ()}
    """
    found = {}
    for name, (kind, option) in options_of(settings).items():
        value = options.get(name, None if option.absent is NOTHING else option.absent)
        if isinstance(value, str) and Path in get_args(kind):
            value = Path(value)
        if value is not None:
            found[name] = tuple(value) if isinstance(value, list) else value
    return found


def as_begun(settings: type[RunSettings], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, without None, over what the run that is resumed, if there is one, was begun with.

    Raises:
        RunError: the run is of another kind, was begun with something else, or its configuration cannot be read.
    """
    check_known("settings", given, [f.name for f in fields(settings)], SettingsError)
    known = {name: x for name, x in given.items() if x is not None}
    if not known.get("resume"):
        return known
    folder = settings(**known).folder
    try:
        found = holds_run(folder)
    except OSError as why:
        raise not_writable(folder, why) from why
    if not found:
        return known
    before = read_config(folder).get("options", {})
    if settings._own not in before:
        raise RunError(
            f"'{folder}' holds a run without {settings._own!r}, so of another command or of code of one's own; resume "
            "it as it was begun, or choose another folder with --out."
        )
    now = {name: x for name, x in as_json(settings(**known).to_json()).items() if name in known}
    check_same(
        {"options": before}, {"options": before | now}, may_change=settings.may_change, force=bool(known.get("force"))
    )
    # None is a value, too: a default may have been another one when the run was begun.
    begun = {n: None for n in options_of(settings) if n in before and before[n] is None} | from_json(settings, before)
    return {n: x for n, x in begun.items() if n not in {*OF_THE_CALL, *given}} | known


def options_of_run(folder: Path, settings: type, command: str, files: Collection[str]) -> dict[str, Any]:
    """The options of a run that has ended, whose folder is as it was written.

    Args:
        folder: of the run.
        settings: the class whose settings there are.
        command: that wrote it.
        files: what it left besides.

    Raises:
        FileNotFoundError: it has not all files.
        RunError: one is damaged, or has what nobody knows.
    """
    for name in (CONFIG, *files):
        if not (folder / name).exists():
            raise FileNotFoundError(f"'{folder}' has no {name}: it holds no finished run of `{command}`.")
    check_run(folder)
    config = read_config(folder)
    check_known(f"'{folder / CONFIG}'", config, CONFIGURATION)
    check_known(f"the options of '{folder / CONFIG}'", config["options"], [f.name for f in fields(settings)])
    return config["options"]


def keywords_of(settings: Callable[P, SettingsT]) -> Callable[[Callable[..., SettingsT]], Callable[P, SettingsT]]:
    """Gives a function of settings the keywords of their class, to read and to type checkers."""

    def typed(function: Callable[..., SettingsT]) -> Callable[P, SettingsT]:
        vars(function)["__signature__"] = inspect.signature(settings)
        return function

    return typed


def check_told(tensorboard: bool, packages: Collection[str]) -> None:
    """Raises `RunError` where what is to be told of a run is not known or not installed: before it begins."""
    if tensorboard:
        check_installed("tensorboardX", "TensorBoard's files")
    for package in packages:
        check_choice("report_to", package, Reporter)
        check_installed(package, "reports to it")


def check_choice(name: str, value: object, choices: object) -> None:
    """Raises `SettingsError` unless `value` is one of those of the `Literal` `choices`."""
    if value not in get_args(choices):
        raise SettingsError(f"got {name}={value!r}; one of {', '.join(map(repr, get_args(choices)))} is required.")


def check_count(name: str, value: object, least: int, most: int) -> None:
    """Raises `SettingsError` unless `value` is an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingsError(f"got {name}={value!r:.40}; an integer of at least {least} is required, at most {most}.")


def check_positive(name: str, value: Any) -> None:
    """Raises `SettingsError` unless `value` is a finite number > 0."""
    if not isinstance(value, int | float) or not 0 < value < (LARGEST if isinstance(value, int) else math.inf):
        raise SettingsError(f"got {name}={value!r:.40}; a finite number > 0 is required, as integer below 2³¹.")


def check_path(name: str, value: str | PurePath) -> None:
    """Raises `SettingsError` for what no file can be called; whether there is one is not looked at."""
    try:
        os.lstat(value)
    except (OSError, ValueError) as why:
        if value == "" or isinstance(why, ValueError) or why.errno in (ENAMETOOLONG, ELOOP):
            said = "it is empty" if value == "" else why.strerror if isinstance(why, OSError) else why
            raise SettingsError(
                f"got {name}={abridged(value)!r}, which cannot be a file's name ({said}); a path is required, of at "
                "most 255 bytes a name and 4095 in all on most systems."
            ) from None


def check_pairs(population: int) -> None:
    """Raises `SettingsError` for an odd population of antithetic pairs."""
    if population % 2:
        raise SettingsError(
            f"got population={population}; an even number is required: members come in pairs. Use {population + 1}."
        )
