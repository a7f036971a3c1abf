"""Rewards of one's own: one or several with weights, for an answer or for many, asynchronous, or as TRL calls them."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

from eggroll.importing import function_named
from eggroll.llm.tasks.base import Problem
from eggroll.training.errors import RunError

FORM = 'reward="module:function"'
Named: TypeAlias = "str | Callable[..., Any]"  # a reward by its name, or itself
ONE, MANY, TRL = "text, problem", "texts, problems", "completions, prompts, **columns"  # how a reward is called


class Combined:
    """Rewards by name or themselves, combined to their weighted mean over those that do not return None.

    Args:
        rewards: each "module:function", "module:function=weight", or a callable: a function, a coroutine function, a
            class without arguments or an object. It is called with `(text, problem)`; if it has a parameter `texts`,
            with lists `(texts, problems)`; if it has `completions` or keywords alone, as TRL does: with lists of
            prompts and completions and of every column, by name. Weights are positive; default 1.

    Attributes:
        names: of the rewards, each different.
        weights: of the rewards.
        batch: how many answers a call may have.
        concurrent: whether as many take no longer than one.

    Raises:
        RunError: no such module or function, or a weight that is none.

    Example:
        >>> both = Combined([lambda text, problem: len(text), lambda texts, problems: [None, 4][: len(texts)]])
        >>> both.reward_each(["a", "bc"], [Problem("Say something.")] * 2), both("a", Problem("Say something."))
        ([[1, None], [2, 4]], 1.0)
    """

    def __init__(self, rewards: Sequence[Named]) -> None:
        self.given = tuple(rewards)
        parsed = [weighted(reward) for reward in rewards]
        self.functions = [_made(_named(each)) if isinstance(each, str) else _made(each) for each, _ in parsed]
        self.weights = [weight for _, weight in parsed]
        short = [_name(each) for each, _ in parsed]
        self.names = [n if short[:i].count(n) == 0 else f"{n}_{short[: i + 1].count(n)}" for i, n in enumerate(short)]
        self._forms = [_form(function) for function in self.functions]
        waiting = [_is_async(function) for function in self.functions]
        self.concurrent = set(self._forms) == {ONE}
        self.batch = 16 if not self.concurrent or any(waiting) else 1

    def __reduce__(self) -> tuple:
        return Combined, (self.given,)

    def __call__(self, text: str, problem: Problem) -> Any:
        """The weighted mean of one answer; what a single reward says as it is."""
        (values,) = self.reward_each([text], [problem])
        if len(values) == 1:
            return values[0]
        known = [(value, weight) for value, weight in zip(values, self.weights, strict=True) if value is not None]
        return sum(v * w for v, w in known) / sum(w for _, w in known) if known else None

    def reward_each(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[list[Any]]:
        """What each reward says of each answer: `[answers][rewards]`, None where it does not apply."""
        columns = [self._called(*each, texts, problems) for each in zip(self.functions, self._forms, strict=True)]
        return [list(row) for row in zip(*columns, strict=True)]

    def check(self, columns: Collection[str]) -> None:
        """Raises `RunError` for a reward in TRL's form that asks for a column that there is not."""
        for name, function, form in zip(self.names, self.functions, self._forms, strict=True):
            if form == TRL:
                wanted = {
                    n for n, p in _parameters(function).items() if p.default is p.empty and p.kind != p.VAR_KEYWORD
                }
                missing = sorted(wanted - {"prompts", "completions"} - set(columns))
                if missing:
                    raise RunError(
                        f"the reward {name!r} asks for {missing[0]!r}, and the prompts have the columns "
                        f"{', '.join(map(repr, columns))}; add it to them, or give it a default."
                    )

    def _called(
        self, function: Callable[..., Any], form: str, texts: Sequence[str], problems: Sequence[Problem]
    ) -> list:
        if form == ONE:
            found = [function(text, problem) for text, problem in zip(texts, problems, strict=True)]
            return asyncio.run(_gathered(found)) if any(map(inspect.isawaitable, found)) else found
        given = _of_trl(function, texts, problems) if form == TRL else {}
        said = function(**given) if form == TRL else function(list(texts), list(problems))
        (said,) = asyncio.run(_gathered([said])) if inspect.isawaitable(said) else [said]
        if isinstance(said, str | bytes) or not hasattr(said, "__len__") or len(said) != len(texts):
            raise TypeError(
                f"returned {repr(said)[:60]} for {len(texts)} answers; a list of as many numbers is required"
            )
        return list(said)


def weighted(reward: Named) -> tuple[Named, float]:
    """A reward without its weight, and that.

    Example:
        >>> weighted("my_rewards:polite=0.5")
        ('my_rewards:polite', 0.5)
    """
    if not isinstance(reward, str) or "=" not in reward:
        return reward, 1.0
    name, _, text = reward.partition("=")
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise RunError(f"got the reward {reward!r} with the weight {text!r}; a finite number > 0 is required.")
    return name, weight


def _named(name: str) -> Callable[..., Any]:
    return function_named(name, "the reward", FORM, "my_rewards:politeness")


async def _gathered(awaited: Sequence[Any]) -> list[Any]:
    async def value(each: Any) -> Any:
        return await each if inspect.isawaitable(each) else each

    return await asyncio.gather(*map(value, awaited))


def _made(reward: Any) -> Callable[..., Any]:
    """A class is a reward by its object."""
    if not isinstance(reward, type):
        if not callable(reward):
            raise RunError(
                f"got the reward {reward!r}, which cannot be called; a function of (text, problem) is required."
            )
        return reward
    try:
        made = reward()
    except Exception as why:  # whatever a user's class raises
        raise RunError(f"the class {reward.__name__!r} of a reward cannot be made without arguments: {why}") from why
    if not callable(made):
        raise RunError(f"objects of the class {reward.__name__!r} of a reward cannot be called; give it __call__.")
    return made


def _name(reward: Named) -> str:
    if isinstance(reward, str):
        return reward.partition(":")[2]
    return getattr(reward, "__name__", type(reward).__name__)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of some functions in C
        return {}


def _form(function: Callable[..., Any]) -> str:
    parameters = _parameters(function)
    kinds = Counter(parameter.kind for parameter in parameters.values())
    if "completions" in parameters or set(kinds) == {inspect.Parameter.VAR_KEYWORD}:
        return TRL
    return MANY if "texts" in parameters else ONE


def _is_async(function: Callable[..., Any]) -> bool:
    return any(inspect.iscoroutinefunction(each) for each in (function, getattr(type(function), "__call__", None)))  # noqa: B004


def _of_trl(function: Callable[..., Any], texts: Sequence[str], problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """What TRL gives a reward: messages where the prompts are messages."""
    fields = [problem.data if isinstance(problem.data, dict) else {} for problem in problems]
    given: dict[str, list[Any]] = {name: [row.get(name) for row in fields] for row in fields for name in row}
    given.pop("prompt", None)
    given["prompts"] = [[dict(m) for m in p.messages] if p.messages else p.prompt for p in problems]
    given["completions"] = [
        [{"role": "assistant", "content": text}] if problem.messages else text
        for text, problem in zip(texts, problems, strict=True)
    ]
    parameters = _parameters(function)
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}
