"""What commands share: options read from settings classes, exit states, and how a run's end is told."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin

import tyro
from rich.console import Console

from eggroll.training.options import options_of

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130
AT_ONCE = "interrupted at once"
WITH_RESULTS = {"finished": 0, "out of time": 0, "stopped early": 0, "interrupted": INTERRUPTED, AT_ONCE: INTERRUPTED}
WIDE = 130  # columns of a table that no terminal limits
METAVARS = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def settings_options(settings: type, defaults: Mapping[str, Any] | None = None) -> Any:
    """Stands in the annotation of a command's field: the options of a settings class, those that are given by name.

    Args:
        settings: the class.
        defaults: settings by the value of the option that decides their defaults. Default None: the class's own.
    """
    return tyro.conf.arg(name="", constructor_factory=partial(_options, settings, defaults or {"": settings}))


def none_given() -> dict[str, Any]:
    """The default of such a field: tyro wants a value for options that may be given several times."""
    return {"reward": (), "reward_env": (), "env_option": (), "test_prompts_file": ()}


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of such a field."""
    return {name: value for name, value in options.items() if value != ()}


def _options(settings: type, defaults: Mapping[str, Any]) -> Any:
    helps, fields = _helps(settings), {}
    for name, (kind, option) in options_of(settings).items():
        values = {choice: getattr(chosen, name) for choice, chosen in defaults.items()}
        each = ", ".join(f"{choice} {value}" for choice, value in values.items())
        decides = all(choice == value for choice, value in values.items())
        text = str(getattr(settings, name)) if decides or len(set(values.values())) == 1 else each
        hint = "(required)" if option.default == "required" else f"(default: {option.default or text})"
        shown = tyro.conf.arg(metavar=option.metavar or _metavar(kind), help=helps[name], help_behavior_hint=hint)
        fields[name] = Annotated[kind, shown]
        if option.repeated:
            fields[name] = Annotated[tuple[str, ...], shown]
            fields[name] = tyro.conf.UseAppendAction[fields[name]]
    made: Any = TypedDict  # what is not given is left out, so that a default is told from a value
    return made(settings.__name__, fields, total=False)


def _helps(settings: type) -> dict[str, str]:
    """The texts under the fields of a class and its bases."""
    found = {}
    for kind in reversed(settings.__mro__[:-1]):
        body: Any = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        for each, text in pairwise(body.body):
            if isinstance(each, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[ast.unparse(each.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def _metavar(kind: Any) -> str | None:
    """How help shows a value of the type; None: as tyro does."""
    for each in (kind, *get_args(kind)):
        if get_origin(each) is Literal:
            return "{" + ",".join(get_args(each)) + "}"
        if each in METAVARS:
            return METAVARS[each]
    return None


def quiet_transformers() -> None:
    """Keeps transformers from saying that PyTorch is missing, which nothing here needs."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def generations(count: int) -> str:
    """A number of generations, in words."""
    return f"{count} generation" if count == 1 else f"{count} generations"


def say(console: Console, text: str) -> None:
    """Prints a line as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def metered(console: Console, settings: Any, label: str, shown: Any, run: Callable[..., Any], **more: Any) -> Any:
    """What `run(settings, ...)` returns, with its progress shown; a signal lets it end and write what there is."""
    # Only here, so that help and refusals do not wait for Flax.
    from eggroll.training.progress import Meter
    from eggroll.training.stopping import StopRequest

    with StopRequest() as stop, Meter(console, settings.generations, label, shown) as meter:
        return run(settings, show=meter.update, asked_to_stop=stop.was_asked, **more)


def say_end(console: Console, ended: str, files: Iterable[Path]) -> int:
    """Prints what a run left and why it ended, if that is not its last generation; the exit status."""
    for file in sorted(files):
        say(console, f"  {file}")
    if ended != "finished":
        more = "; --resume goes on from the last checkpoint" if ended == AT_ONCE else ""
        print(f"eggroll: {ended}; what there is was written{more}", file=sys.stderr)
    return WITH_RESULTS.get(ended, FAILED)
