"""Rules by path: which parameters get which perturbation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from eggroll.engine.checks import as_count, check_one_of

_RANK_HINT = (
    " 1 is a sensible start: the noise of a large population adds up to full rank. To keep a parameter still, give it "
    'the rule "frozen".'
)


Small = Literal["dense", "low_rank"]  # noise of layers whose factors would be no fewer numbers than their weight


def check_small(small_layers: Small) -> Small:
    """The noise of small layers, if it is one that there is."""
    check_one_of("small_layers", small_layers, get_args(Small))
    return small_layers


def check_rank(rank: int) -> int:
    """`rank` as a Python integer; raises unless it is at least 1."""
    return as_count("rank", rank, 1, _RANK_HINT)


def _check_scale(scale: float) -> None:
    if not 0 < scale < float("inf"):
        raise ValueError(
            f'got sigma_scale={scale!r}; a finite number > 0 is required (the rule "frozen" means no noise).'
        )


@dataclass(frozen=True)
class LowRankRule:
    """Perturb the matching parameters by low-rank noise.

    Args:
        rank: number of columns of each factor, at least 1 and at most the layer's full rank; None (default) takes the
            strategy's rank.
        sigma_scale: factor on the strategy's sigma, > 0; default 1.
        left_axes: axes of the left factor, ascending; None (default) takes what was discovered from the function.
        right_axes: axes of the right factor, likewise. An axis in both is a batch axis; give both or neither.

    Raises:
        ValueError: a rank below 1, a scale that is not positive, or one of the two axes without the other.

    Example:
        >>> import eggroll
        >>> rules = [("head/kernel", eggroll.LowRankRule(rank=4)), (".*/bias", "frozen")]
    """

    rank: int | None = None
    sigma_scale: float = 1.0
    left_axes: tuple[int, ...] | None = None
    right_axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank is not None:
            object.__setattr__(self, "rank", check_rank(self.rank))
        _check_scale(self.sigma_scale)
        if (self.left_axes is None) != (self.right_axes is None):
            raise ValueError(
                f"got left_axes={self.left_axes} and right_axes={self.right_axes}: give both, or neither to keep "
                "what eggroll.explain shows."
            )


@dataclass(frozen=True)
class DenseRule:
    """Perturb the matching parameters by full-rank noise: one number per element and member.

    Args:
        sigma_scale: factor on the strategy's sigma, > 0; default 1.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> import eggroll
        >>> rules = [("norm/.*", eggroll.DenseRule(sigma_scale=0.1))]
    """

    sigma_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_scale(self.sigma_scale)


@dataclass(frozen=True)
class FrozenRule:
    """Leave the matching parameters as they are; `"frozen"` in a list of rules."""


@dataclass(frozen=True)
class WeightRule:
    """Perturb the matching parameters themselves, as their use decides, under `noise="activations"`, too."""


Rule = LowRankRule | DenseRule | FrozenRule | WeightRule
Rules = Sequence[tuple[str, "str | Rule"]]
NAMES: dict[str, Rule] = {
    "low_rank": LowRankRule(),
    "dense": DenseRule(),
    "frozen": FrozenRule(),
    "weights": WeightRule(),
}


def match_rules(rules: Rules, paths: Iterable[str]) -> dict[str, Rule]:
    """Finds the first rule whose pattern matches the whole path, for each path.

    Args:
        rules: `(regular expression, rule)` pairs; a rule is `"low_rank"`, `"dense"`, `"frozen"`, `"weights"` or a rule
            object.
        paths: all parameter paths.

    Returns:
        path → rule, without the paths that no rule matches.

    Raises:
        ValueError: a rule that matches nothing (an earlier rule may have taken its paths), a broken regular
            expression, an unknown name.

    Example:
        >>> match_rules([(".*bias", "frozen")], ["a/bias", "a/kernel"])
        {'a/bias': FrozenRule()}
    """
    paths = list(paths)
    compiled = [(compile_pattern(pattern), pattern, _named(rule)) for pattern, rule in _pairs(rules)]
    found: dict[str, Rule] = {}
    used: set[int] = set()
    for path in paths:
        for i, (regex, _, rule) in enumerate(compiled):
            if regex.fullmatch(path):
                found[path] = rule
                used.add(i)
                break
    for i, (_, pattern, _) in enumerate(compiled):
        if i not in used:
            raise ValueError(unused_pattern(pattern, paths))
    return found


def as_rules(rules: Any) -> tuple[tuple[str, str | Rule], ...]:
    """The rules as a tuple; raises TypeError where they are no list of pairs."""
    if isinstance(rules, str) or not isinstance(rules, Iterable) or hasattr(rules, "dtype"):
        raise TypeError(f'got rules={rules!r:.80}; a list of pairs is required, such as [(".*/bias", "frozen")].')
    return tuple(rules)


def _pairs(rules: Rules) -> list[tuple[str, str | Rule]]:
    pairs = as_rules(rules)
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(
                f'got the rule {pair!r}; a pair (pattern, rule) is required, such as (".*/bias", "frozen").'
            )
    return [(p, r) for p, r in pairs]


def _named(rule: str | Rule) -> Rule:
    if isinstance(rule, LowRankRule | DenseRule | FrozenRule | WeightRule):
        return rule
    if isinstance(rule, str) and rule in NAMES:
        return NAMES[rule]
    raise ValueError(f"got the rule {rule!r}; use one of {sorted(NAMES)}, LowRankRule(...) or DenseRule(...).")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The rule's pattern, compiled; raises ValueError where it is broken."""
    try:
        return re.compile(pattern)
    except re.error as why:
        raise ValueError(f"the rule's pattern {pattern!r} is not a regular expression: {why}.") from why


def unused_pattern(pattern: str, paths: list[str], what: str = "") -> str:
    """What to say of a rule that decides for no path."""
    near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or paths[:3]
    return (
        f"the {what}rule for {pattern!r} decides for no parameter: the whole path must match, and the first matching "
        f"rule wins. Paths look like {', '.join(map(repr, near))} ({len(paths)} in all; eggroll.explain lists them)."
    )
