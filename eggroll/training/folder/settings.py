"""What decides a run's numbers, compared when the run goes on. Without JAX: what refuses early does not wait for it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.training.errors import RunError
from eggroll.training.folder.layout import holds_run, read_config

LOGGER = logging.getLogger("eggroll")
# What a run's configuration has; what else is in one decides something that this version does not know.
CONFIGURATION = ("options", "strategy", "parameters", "versions", "checkpoint_every", "changes")
FUNCTION, SCHEDULE, VALUES, UNSEEN = "function", "schedule", "values", "unseen"
ROUNDING, FLOOR = 3e-5, 1e-6  # of a number; of the largest value of a schedule
LINE = 80  # characters of a value that is shown as it is
MOST = 8  # differences that are told
SHOWN = 2  # results of a function that are told
NOTHING = object()  # in place of a setting that is not there


def apart(one: Any, other: Any, largest: float = 0.0) -> tuple[str, str] | None:
    """Where two results differ by more than rounding; None if they do not.

    Args:
        one: a number, groups of them as a string, or the name of an error.
        other: another.
        largest: of the values that these are among.

    Example:
        >>> apart("0.1 nan, 1e-9", "0.1000001 nan, 1.00001e-9"), apart("0.1, 1e-9", "0.1, 2e-9")
        (None, ('1e-9', '2e-9'))
    """
    for was, now in zip_longest(str(one).split(", "), str(other).split(", "), fillvalue="nothing"):
        try:
            pair = [np.array([float(x) for x in group.split()]) for group in (was, now)]
            size = max((abs(x) for x in [*pair[0], *pair[1]] if math.isfinite(x)), default=0.0)
            same = np.allclose(*pair, rtol=0, atol=ROUNDING * size + FLOOR * largest, equal_nan=True)
        except ValueError:
            same = was == now
        if not same:
            return was, now
    return None


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` as they come back from a JSON file.

    Raises:
        RunError: something that JSON cannot hold.
    """
    try:
        return json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as why:
        raise RunError(
            f"got settings that JSON cannot hold ({why}); numbers, strings, lists and dictionaries are required."
        ) from why


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names what changed, each as `name: before → now`.

    Args:
        before: the settings that were written down.
        now: the present ones.

    Example:
        >>> differences({"population": 4, "model": {"width": 8}}, {"population": 8, "model": {"width": 9}})
        ['population: 4 → 8', 'model.width: 8 → 9']
    """
    pairs = {name: (before.get(name, NOTHING), now.get(name, NOTHING)) for name in {**before, **now}}
    return [line for name, pair in pairs.items() for line in compared(name, *pair)]


def compared(name: str, was: Any, now: Any) -> list[str]:
    """The differences between two values of one setting; `NOTHING` for one that is not there.

    Example:
        >>> compared("rank", 1, NOTHING)
        ['rank: 1 → nothing']
    """
    if was == now or unseen(name, was, now):
        return []
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        if _tried(was) and _tried(now):
            return _other_results(name, was, now)
        if _kind(was) == _kind(now):
            inner = [(_joined(name, key), was.get(key, NOTHING), now.get(key, NOTHING)) for key in {**was, **now}]
            return [line for each in inner for line in compared(*each)]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = enumerate(zip(was, now, strict=True))
        return [line for i, pair in pairs for line in compared(f"{name}[{i}]", *pair)]
    return [f"{name}: {_text(was)} → {_text(now)}"]


def _other_results(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two functions do otherwise, of that which both were asked; by their arguments where both have them."""
    both = [key for key in now[VALUES] if key in was[VALUES]]
    curve = [abs(x) for found in (was, now) for key in both if isinstance(x := found[VALUES][key], float)]
    pairs = {key: apart(was[VALUES][key], now[VALUES][key], max(curve, default=0.0)) for key in both}
    other = [f"{name}.{VALUES}.{key}: {pair[0]} → {pair[1]}" for key, pair in pairs.items() if pair]
    lines = []
    if _arguments(was) and _arguments(now):
        lines = compared(name, was[SCHEDULE], now[SCHEDULE])
    elif other and was.get(FUNCTION) != now.get(FUNCTION):
        lines = [f"{name}: {_text(was)} → {_text(now)}"]
    more = [f"{len(other) - SHOWN} more results of {name}"] if len(other) > SHOWN else []
    return [*lines, *other[:SHOWN], *more]


def _tried(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get(VALUES), Mapping) and (FUNCTION in value or SCHEDULE in value)


def _arguments(value: Mapping[str, Any]) -> bool:
    return "arguments" in value.get(SCHEDULE, {})


def unseen(name: str, was: Any, now: Any) -> bool:
    """Whether a setting is a function of which nothing but its name can be compared, and that is the same.

    It could not be tried, or an earlier version wrote it down, which described functions by their code.
    """
    if name == "optimizer" and now is None:  # earlier versions wrote one down for full-rank ES, which never used it
        return isinstance(was, Mapping) and "init" in was
    if not isinstance(now, Mapping) or not (UNSEEN in now or _tried(now)):
        return False
    if not isinstance(was, Mapping):
        return was == "a function" or str(was).startswith("schedule, ") or (was is None and name == "optimizer")
    if "name" in was or VALUES in was or (UNSEEN in was and VALUES in now):
        return False
    names = [str(each.get(FUNCTION)).rpartition(".")[2] for each in (was, now)]
    return "init" in was or names[0] == names[1]


def _kind(value: Mapping[str, Any]) -> list[Any]:
    return [value.get(name) if isinstance(value.get(name), str) else None for name in ("name", FUNCTION, SCHEDULE)]


def _joined(name: str, key: str) -> str:
    return name if key == "arguments" else f"{name}.{key}"


def _text(value: Any) -> str:
    """A value in a line: a function is known by its name, and `name(argument=value)` where it has arguments."""
    if value is NOTHING:
        return "nothing"
    text = json.dumps(value)
    called = next((one for one in _kind(value) if one), None) if isinstance(value, Mapping) else None
    if called is None:
        inner = value.get(SCHEDULE) if isinstance(value, Mapping) else None
        return _text(inner) if inner else text if len(text) <= LINE else f"{text[:LINE]} …"
    if UNSEEN in value:
        return f"{called}, which cannot be tried ({value[UNSEEN]})"
    arguments = value.get("arguments", {"of": value["of"]} if "of" in value else {})
    return f"{called}({', '.join(f'{key}={_text(each)}' for key, each in arguments.items())})" if arguments else called


def check_same(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    force: bool,
    may_change: frozenset[str] = frozenset(),
) -> list[str]:
    """The differences between two configurations, if `force` allows them.

    Args:
        before: the one that was written down: `strategy` and `options`.
        now: the present one.
        force: whether there may be any.
        may_change: options that are not compared.

    Raises:
        RunError: there are some, and `force` is false.
    """
    options = [
        {name: x for name, x in config.get("options", {}).items() if name not in may_change} for config in (before, now)
    ]
    was, es = before.get("strategy", {}), now.get("strategy", {})
    for name in es:
        if es[name] is not None and name in was and unseen(name, was[name], es[name]):
            why = es[name].get(UNSEEN, "an earlier version wrote it down otherwise")
            LOGGER.warning("resuming with the same %s as far as names tell, not compared by results: %s", name, why)
    unknown = {name: value for name, value in before.items() if name not in CONFIGURATION}
    changed = list(dict.fromkeys([*differences(was, es), *differences(*options), *differences(unknown, {})]))
    if changed and not force:
        more = f"; and {len(changed) - MOST} more" if len(changed) > MOST else ""
        if any(line.startswith("generations: ") for line in changed):
            more += ". The learning rate falls over all generations: with another number of them all of it differs"
        raise RunError(
            f"the run to resume was started with other settings: {'; '.join(changed[:MOST])}{more}. Resume it with its "
            "own, start anew with --overwrite (overwrite=True), or go on with the new ones, from here on, with "
            "--force (force=True)."
        )
    return changed


def check_options(folder: Path, options: Mapping[str, object], may_change: frozenset[str]) -> None:
    """Says before anything dear is done that the run in `folder`, if there is one, was begun with other options.

    Raises:
        RunError: it was; the strategy is compared later.
    """
    if holds_run(folder):
        before = {"options": read_config(folder).get("options", {})}
        check_same(before, {"options": as_json(options)}, may_change=may_change, force=False)
