"""Which digits of an index go with which losses, and how that moves from an operation's result to its operands.

A link holds for all entries of a variable, so that leaving one out is always right, and several hold together. Merged
axes are told apart by digits, so that rows stay rows where a model folds `[B, T]` into `[B * T]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from eggroll.strategy.dependence.steps import Step
from eggroll.strategy.dependence.values import MOST, Array, reshaped


class Digit(NamedTuple):
    """The part `(i // stride) % size` of the index i of an axis: what one of two merged axes leaves."""

    axis: int
    stride: int
    size: int


class Link(NamedTuple):
    """Digit i of a variable's index reaches digit t of the loss' where `reach[i, t]`; None: i = t.

    What belongs together is at t = i + `own` (None: not known), found along a path that keeps indices apart.
    """

    reach: Array | None = None
    own: int | None = None


Links = dict[tuple[Digit, Digit], Link]


class State(NamedTuple):
    """Links, and which entries matter, None: all, an array of length 1 where that is the same along an axis."""

    links: Links
    live: Array | None = None


def full(reach: Array | None) -> bool:
    """Whether a matrix rules nothing out; one that was made so costs nothing to look at."""
    return reach is not None and (reach.strides == (0, 0) or bool(reach.all()))


def add(links: Links, digit: Digit, loss: Digit, link: Link) -> None:
    """Adds a link, unless it says nothing; what holds beside another one holds too, of which the tighter is kept."""
    reach, own = link
    if full(reach):
        if own is None:
            return
        reach = everything((digit, loss))
    elif reach is not None and digit.size == loss.size == np.count_nonzero(reach) == reach.trace():
        reach, own = None, 0
    other = links.get((digit, loss))
    links[digit, loss] = Link(reach, own) if other is None else _both(other, Link(reach, own))


def _both(a: Link, b: Link) -> Link:
    own = nearest(a, b)
    if a.reach is None or b.reach is None:
        return Link(None, own)
    tighter = full(b.reach) or (not full(a.reach) and a.reach.sum() <= b.reach.sum())
    return Link(a.reach if tighter else b.reach, own)


def nearest(a: Link, b: Link) -> int | None:
    """Of two ways to tell a loss of its own, that which moves it less."""
    return min((own for own in (a.own, b.own) if own is not None), key=abs, default=None)


def matrix(digit: Digit, loss: Digit, link: Link, length: int | None = None) -> Array | None:
    """The matrix of a link, for every index of an axis of some length; None: too large to be worth it."""
    n = length or digit.size
    if n * loss.size > MOST:
        return None
    reach = np.eye(digit.size, loss.size, dtype=bool) if link.reach is None else link.reach
    return reach if length is None else reach[(np.arange(n) // digit.stride) % digit.size]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which index leads to which loss by way of any third. Layers are alike, so each product is made once."""
    return _multiplied(np.packbits(a).tobytes(), np.packbits(b).tobytes(), a.shape, b.shape)


@lru_cache(maxsize=32)
def _multiplied(a: bytes, b: bytes, first: tuple[int, ...], second: tuple[int, ...]) -> np.ndarray:
    bits = ((np.frombuffer(x, np.uint8), shape) for x, shape in ((a, first), (b, second)))
    left, right = (np.unpackbits(x, count=math.prod(s)).reshape(s).astype(np.float32) for x, s in bits)
    return (left @ right) > 0


def join(a: State | None, b: State | None) -> State | None:
    """What holds whichever of two ways an entry takes."""
    if a is None or b is None:
        return a or b
    links: Links = {}
    first, second = _refined(a.links, b.links), _refined(b.links, a.links)
    for key in {**first, **second}:
        one, other = first.get(key, Link(everything(key))), second.get(key, Link(everything(key)))
        own = nearest(one, other)
        if one.reach is None and other.reach is None:
            add(links, *key, Link(None, own))
        elif full(one.reach) or full(other.reach):
            add(links, *key, Link(everything(key), own))
        elif (reach := [matrix(*key, x) for x in (one, other)])[0] is not None and reach[1] is not None:
            add(links, *key, Link(reach[0] | reach[1], own))
        else:
            add(links, *key, Link(everything(key), own))
    return State(links, None if a.live is None or b.live is None else _thin(a.live | b.live))


def everything(key: tuple[Digit, Digit]) -> np.ndarray:
    """The matrix that rules nothing out, of any size for nothing."""
    return np.broadcast_to(True, (key[0].size, key[1].size))


def _thin(live: Array) -> Array | None:
    return None if live.all() else live


def _refined(links: Links, beside: Links) -> Links:
    """Links cut where those beside them are, where the digits are known one by one."""
    found: Links = {}
    for (digit, loss), link in links.items():
        ends = {e // digit.stride for d, _ in beside if d[0] == digit.axis for e in (d.stride, d.stride * d.size)}
        cuts = sorted(e for e in ends if 1 < e < digit.size)
        for part in _cut(digit, loss, link, [1, *cuts, digit.size]):
            add(found, *part)
    return found


def _cut(digit: Digit, loss: Digit, link: Link, at: Sequence[int]) -> list[tuple[Digit, Digit, Link]]:
    """A link as several, of the digits between the strides `at`."""
    if len(at) == 2:
        return [(digit, loss, link)]
    if any(high % low for low, high in pairwise(at)):
        return []
    parts = []
    alike = digit.size == loss.size and (link.reach is None or link.own == 0)
    for low, high in pairwise(at):
        part = Digit(digit.axis, digit.stride * low, high // low)
        if alike:
            mine = Digit(loss.axis, loss.stride * low, high // low)
            parts.append((part, mine, Link(None if link.reach is None else everything((part, mine)), link.own)))
        if link.reach is not None and not full(link.reach):
            whole = link.reach.reshape(digit.size // high, high // low, low, loss.size)
            parts.append((part, loss, Link(whole.any((0, 2)))))
    return parts


def transfer(state: State, steps: Sequence[Step], into: Sequence[int], out: Sequence[int], keep: Any = None) -> State:
    """The state of an operand from that of a result.

    Args:
        state: of the result.
        steps: the operand's route.
        into: its shape.
        out: the result's shape, and then that of what is summed over.
        keep: which entries of these matter, or None: all.
    """
    links: Links = {}
    for (digit, loss), link in state.links.items():
        ways = [s for s in steps if s.out == digit.axis]
        if digit.axis < 0:
            add(links, digit, loss, link)
        elif ways:
            _follow(links, ways[0], digit, loss, link, (into, out))
        elif keep is not None:
            _across(links, steps, digit, loss, link, (into, out), keep)
    return State(links, None if keep is None else _kept(keep, steps, len(into)))


def _follow(links: Links, step: Step, digit: Digit, loss: Digit, link: Link, shapes: Any) -> None:
    """A link along a step."""
    into, out = shapes
    if step.reach is None:
        return add(links, digit._replace(axis=step.into), loss, link)
    whole = Digit(step.into, 1, into[step.into])
    entire = digit.stride == 1 and step.shift is not None and link.own is not None
    own = step.shift + link.own if entire and step.shift is not None and link.own is not None else None
    moved = step.reach() if whole.size * out[digit.axis] <= MOST else None
    reach = None
    if moved is not None and link.reach is None and digit.stride == 1 and digit.size == moved.shape[1]:
        reach = moved
    elif moved is not None and (there := matrix(digit, loss, link, moved.shape[1])) is not None:
        reach = _product(moved, there)
    add(links, whole, loss, Link(everything((whole, loss)) if reach is None else reach, own))


def _across(links: Links, steps: Sequence[Step], digit: Digit, loss: Digit, link: Link, shapes: Any, keep: Any) -> None:
    """A link to an axis that the operand has not got, by what a mask leaves between it and those that it has."""
    into, out = shapes
    for step in steps:
        if step.reach is not None or keep.shape[step.out] == 1 or keep.shape[digit.axis] == 1:
            continue
        others = tuple(a for a in range(keep.ndim) if a not in (step.out, digit.axis))
        pairs = keep.any(others) if step.out < digit.axis else keep.any(others).T
        there = matrix(digit, loss, link, out[digit.axis])
        if there is not None and not pairs.all():
            whole = Digit(step.into, 1, into[step.into])
            add(links, whole, loss, Link(_product(pairs, there)))


def _kept(keep: Array, steps: Sequence[Step], rank: int) -> Array | None:
    mine = {s.out: s.into for s in steps if s.reach is None}
    left = keep.any(tuple(a for a in range(keep.ndim) if a not in mine), keepdims=True)
    order = sorted(mine, key=lambda a: mine[a])
    left = left.transpose([*order, *(a for a in range(keep.ndim) if a not in mine)])
    shape = [1] * rank
    for place, a in enumerate(order):
        shape[mine[a]] = left.shape[place]
    return _thin(left.reshape(shape))


def reshape(state: State, into: Sequence[int], out: Sequence[int]) -> State:
    """The state of what was reshaped to `out`: an index of all entries keeps its digits."""
    links: Links = {}
    for (digit, loss), link in state.links.items():
        if digit.axis < 0:
            add(links, digit, loss, link)
            continue
        start = math.prod(out[digit.axis + 1 :]) * digit.stride
        for part in _placed(digit, loss, link, start, into):
            add(links, *part)
    live = state.live
    return State(links, None if live is None or 0 in into else reshaped(live, out, into))


def _placed(digit: Digit, loss: Digit, link: Link, start: int, into: Sequence[int]) -> list[Any]:
    """A link whose digit has the stride `start` among all entries, on the axes of the shape `into`."""
    places = [(a, math.prod(into[a + 1 :]), n) for a, n in enumerate(into)]
    if digit.size == 1:
        return [(Digit(a, 1, 1), loss, link) for a, inner, n in places if n == 1 and inner == start][:1]
    found = [(a, i, max(start, i), min(start * digit.size, i * n)) for a, i, n in places]
    found = sorted((f for f in found if f[2] < f[3]), key=lambda f: f[2])
    at = [f[2] / start for f in found] + [digit.size]
    if any(x != int(x) for x in at) or any(low % inner for _, inner, low, _ in found):
        return []
    parts = []
    for part, mine, left in _cut(Digit(0, start, digit.size), loss, link, [int(x) for x in at]):
        axis, inner, _, _ = next(f for f in found if f[2] == part.stride)
        parts.append((Digit(axis, part.stride // inner, part.size), mine, left))
    return parts
