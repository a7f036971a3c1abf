"""What decides a run's numbers, written down, and compared when the run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eggroll.strategy.es import ES
from eggroll.strategy.full_rank import FullRankES
from eggroll.training.errors import RunError

# Where and how often a run is written, and when it pauses: not what it computes.
UNDECIDING = frozenset(
    {"out", "overwrite", "resume", "force", "checkpoint_every", "keep", "keep_best", "time_limit", "tensorboard"}
    | {"workers", "samples"}
)


def describe(es: ES) -> dict[str, Any]:
    """The settings of a strategy that decide its numbers, as JSON can hold them.

    Example:
        >>> import eggroll
        >>> describe(eggroll.ES(population=4, sigma=0.1))["population"]
        4
    """
    who = es.settings
    found = {
        "population": who.size,
        "sigma": es.sigma if isinstance(es.sigma, int | float) else f"schedule, {_number(es.sigma(0))} at first",
        "rank": es.rank,
        "distribution": who.distribution,
        "shaping": es.shaping if isinstance(es.shaping, str) else "a function",
        "antithetic": who.antithetic,
        "groups": who.groups,
        "noise_reuse": es.noise_reuse,
        "rules": [[pattern, str(rule)] for pattern, rule in es.rules],
        "optimizer": getattr(es.optimizer, "spec", None),
    }
    if isinstance(es, FullRankES):
        rate = es.learning_rate
        rate = f"schedule, {_number(rate(0))} at first" if callable(rate) else rate
        found |= {"method": es.method, "learning_rate": rate}
    return found


def _number(x: Any) -> float:
    return float(f"{float(x):.9g}")


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
    """Names what changed, each as `name: before → now`; what does not decide a run's numbers is left out.

    Example:
        >>> differences({"population": 4, "out": "a"}, {"population": 8, "out": "b"})
        ['population: 4 → 8']
    """
    names = [name for name in [*before, *(n for n in now if n not in before)] if name not in UNDECIDING]
    missing = object()
    return [difference(name, before, now) for name in names if before.get(name, missing) != now.get(name, missing)]


def difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`name: before → now` of one setting.

    Example:
        >>> difference("rank", {"rank": 1}, {})
        'rank: 1 → nothing'
    """
    return f"{name}: {_text(before, name)} → {_text(now, name)}"


def _text(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "nothing"


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], *, force: bool) -> list[str]:
    """The differences between two configurations, if `force` allows them.

    Raises:
        RunError: there are some, and `force` is false.
    """
    pairs = [(before.get(part, {}), now.get(part, {})) for part in ("strategy", "options")]
    changed = list(dict.fromkeys(line for old, new in pairs for line in differences(old, new)))
    if changed and not force:
        raise RunError(
            f"the run to resume was started with other settings: {'; '.join(changed)}. Resume it with its own, start "
            "anew with --overwrite (overwrite=True), or go on with the new ones with --force (force=True)."
        )
    return changed
