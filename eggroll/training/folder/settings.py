"""What decides a run's numbers, written down, and compared when the run goes on; without JAX, to refuse quickly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from eggroll.training.errors import RunError
from eggroll.training.folder.layout import FUNCTION, VALUES

if TYPE_CHECKING:
    from eggroll.strategy.protocol import Strategy

LINE = 80  # characters of a value that is shown as it is
MOST = 8  # differences that are told
SCHEDULES = ("sigma", "learning_rate")  # settings that may be one
NOTHING = object()  # in place of a setting that is not there


def describe(es: Strategy) -> dict[str, Any]:
    """The settings of a strategy that decide its numbers, as JSON can hold them.

    Example:
        >>> import eggroll
        >>> describe(eggroll.ES(population=4, sigma=0.1))["population"]
        4
    """
    return {name: _described(name, value) for name, value in es.options().items()}


def _described(name: str, value: Any) -> Any:
    from eggroll.training.folder.described import described, schedule_values  # only here: they need JAX

    if name == "rules":
        return [[pattern, str(rule)] for pattern, rule in value]
    if name in SCHEDULES and callable(value):  # by its values too, which other versions of a library share
        return {"schedule": described(value), VALUES: schedule_values(value)}
    return value if value is None or isinstance(value, str | int | float) else described(value)


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


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, code: bool = True) -> list[str]:
    """Names what changed, each as `name: before → now`.

    Args:
        before: the settings that were written down.
        now: the present ones.
        code: whether descriptions of functions are compared. False where versions of libraries differ, which describe
            the same otherwise.

    Example:
        >>> differences({"population": 4, "model": {"width": 8}}, {"population": 8, "model": {"width": 9}})
        ['population: 4 → 8', 'model.width: 8 → 9']
    """
    names = [*before, *(name for name in now if name not in before)]
    found = [compared(name, before.get(name, NOTHING), now.get(name, NOTHING), code) for name in names]
    return list(dict.fromkeys(line for lines in found for line in lines))


def compared(name: str, was: Any, now: Any, code: bool = True) -> list[str]:
    """The differences between two values of one setting; `NOTHING` for one that is not there.

    Example:
        >>> compared("rank", 1, NOTHING)
        ['rank: 1 → nothing']
    """
    if name == "optimizer" and now is None:  # earlier versions wrote one down for full-rank ES, which never used it
        return []
    if was == now or _undescribed(was, now) or (not code and (_is_function(was) or _is_function(now))):
        return []
    if isinstance(was, Mapping) and isinstance(now, Mapping) and _kind(was) == _kind(now):
        # A function deep inside an optimizer is better known by its own name than by the way there.
        place = f"{name.split(' ')[0].split('.')[0]} {_short(was[FUNCTION])}" if _is_function(was) else name
        inner = [(_joined(place, key), was.get(key, NOTHING), now.get(key, NOTHING)) for key in {**was, **now}]
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        inner = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(was, now, strict=True))]
    else:
        return [f"{name}: {_text(was)} → {_text(now)}"]
    return [line for each in inner for line in compared(*each, code)]


def _undescribed(was: Any, now: Any) -> bool:
    """Whether the first was written by a version of eggroll that could not describe what the second is."""
    old = was is None or was == "a function" or (isinstance(was, str) and was.startswith("schedule, "))
    return old and isinstance(now, Mapping) and "name" not in now


def _short(function: str) -> str:
    """Without the parts of an optimizer that all have."""
    return re.sub(r"\.(init|update)(_fn)?$", "", function)


def _is_function(value: Any) -> bool:
    return isinstance(value, Mapping) and FUNCTION in value


def _kind(value: Mapping[str, Any]) -> list[str | None]:
    named = [value.get(name) for name in ("name", FUNCTION, "schedule")]
    return [_short(one) if isinstance(one, str) else None for one in named]


def _joined(name: str, key: str) -> str:
    return name if key == "arguments" else f"{name}.{key}"


def _text(value: Any) -> str:
    """A value in a line: what is long is known by its names."""
    if value is NOTHING:
        return "nothing"
    text = json.dumps(value)
    if not isinstance(value, Mapping | list) or len(text) <= LINE:
        return _called(value) if isinstance(value, Mapping) else text
    names = list(dict.fromkeys(_names(value)))
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "") if names else f"{text[:LINE]} …"


def _called(value: Mapping[str, Any]) -> str:
    """`name(argument=value)` of what is described so, else JSON."""
    name = next((one for one in _kind(value) if one), None)
    if name is None:
        return json.dumps(value)
    more = value.get("arguments", {key: each for key, each in value.items() if key not in ("name", FUNCTION)})
    return f"{name}({', '.join(f'{key}={_text(each)}' for key, each in more.items())})"


def _names(value: Any) -> Iterator[str]:
    """Of all functions inside."""
    if isinstance(value, Mapping):
        yield from (one for one in _kind(value) if one)
    if isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _names(each)


def check_same(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    force: bool,
    may_change: frozenset[str] = frozenset(),
    code: bool = True,
) -> list[str]:
    """The differences between two configurations, if `force` allows them.

    Args:
        before: the one that was written down: `strategy` and `options`.
        now: the present one.
        force: whether there may be any.
        may_change: options that are not compared.
        code: as in `differences`.

    Raises:
        RunError: there are some, and `force` is false.
    """
    options = [
        {name: x for name, x in config.get("options", {}).items() if name not in may_change} for config in (before, now)
    ]
    pairs = [(before.get("strategy", {}), now.get("strategy", {})), options]
    changed = list(dict.fromkeys(line for old, new in pairs for line in differences(old, new, code=code)))
    if changed and not force:
        more = f"; and {len(changed) - MOST} more" if len(changed) > MOST else ""
        raise RunError(
            f"the run to resume was started with other settings: {'; '.join(changed[:MOST])}{more}. Resume it with its "
            "own, start anew with --overwrite (overwrite=True), or go on with the new ones with --force (force=True)."
        )
    return changed
