"""Answers of a whole population, or of one model, in as many calls as memory asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eggroll.engine.annotations import PyTree
from eggroll.llm.answers.decoding import Answers, Generator, Paused
from eggroll.llm.answers.memory import Fit, answer_need, fit, in_words
from eggroll.llm.answers.prompts import Prompts
from eggroll.llm.answers.segments import in_segments, worthwhile
from eggroll.llm.answers.writing import Writer, writer
from eggroll.strategy.members import Members
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.update.written import check_writes
from eggroll.training.errors import RunError

__all__ = ["generate", "generate_plain", "population_fit"]


def generate(
    members: Members,
    generator: Generator,
    prompts: Prompts,
    *,
    key: jax.Array | None = None,
    common: bool = True,
    budget: float | None = None,
    chunk: int | None = None,
) -> Answers:
    """Answers of every member to its prompts.

    Args:
        members: from `es.ask(state)`, of `ES` or `FullRankES`.
        generator: from `eggroll.llm.generator`.
        prompts: `[prompts, time]`, which every member answers, or `[groups, prompts, time]`: members of group `g` of
            `ES(groups=...)` answer those of row `g`.
        key: to draw tokens with, above temperature 0. What a prompt's answer is drawn with depends on the key and the
            prompt's place alone, not on what is answered at once.
        common: whether members draw with common random numbers (default), so that they differ by their weights alone;
            False: each with its own.
        budget: bytes that caches, logits, activations and noise may take on a device. Default None: what
            `eggroll.llm.answers.memory.available` says.
        chunk: members at once on a device. Default None: as many as fit; see `population_fit`.

    Returns:
        `tokens [population, prompts, max_tokens]` and `length [population, prompts]`.

    Raises:
        RunError: it does not fit, or memory ran out; it says what would.

    Example:
        >>> import jax, jax.numpy as jnp, eggroll
        >>> from flax import nnx
        >>> from eggroll.llm import Decoder, DecoderConfig, Decoding, generate, generator
        >>> from eggroll.llm.answers.decoding import split
        >>> from eggroll.llm.answers.prompts import pad_left
        >>> sizes = {"vocabulary": 32, "width": 16, "hidden": 32, "layers": 2, "heads": 2, "key_value_heads": 1}
        >>> graphdef, params = split(Decoder(DecoderConfig(**sizes, head_width=8), rngs=nnx.Rngs(0)))
        >>> es = eggroll.ES(population=4)
        >>> members = es.ask(es.init(params, jax.random.key(0)))
        >>> generate(members, generator(graphdef, Decoding(max_tokens=5)), pad_left([[3, 4], [7, 8, 9]])).tokens.shape
        (4, 2, 5)
    """
    fun, rows, axes = _asked(members, generator, prompts, key, common)
    chosen = _fit(members, fun, rows, axes, budget, chunk)
    settings, each = members.settings, _each(fun, rows)
    at_once = chosen.prompts * chosen.members
    apart = not isinstance(fun, Writer) and settings.mesh is None and _apart(fun, members.params, at_once, rows[0])

    def part(taken: np.ndarray) -> Answers:
        if isinstance(fun, Writer):
            return members.apply(fun, *rows, in_axes=axes, chunk=chosen.members)
        own = [jnp.take(x, taken, axis=1 if axis == 0 else 0) for x, axis in zip(rows, axes, strict=True)]
        if apart:
            return _population_in_segments(members, generator, own, axes, chosen)
        return members.apply(fun, *own, in_axes=axes, chunk=chosen.members)

    what = f"{chosen.members} members wrote {chosen.prompts} answers each ({in_words(chosen.bytes)} estimated)"
    with explained(what, _half(chosen)):
        return jax.block_until_ready(_in_parts(part, each, chosen.prompts))


def generate_plain(
    params: PyTree, generator: Generator, prompts: Prompts, *, key: jax.Array | None = None, budget: float | None = None
) -> Answers:
    """Answers of one model: as `generate`, without members: `tokens [prompts, max_tokens]`, `length [prompts]`."""
    need = answer_need(
        _config(generator, params), generator.decoding, prompts.tokens.shape[1], itemsize=_itemsize(params)
    )
    chosen = fit(need, members=1, prompts=len(prompts.tokens), budget=budget, unit=1)
    keys = _keys(generator, key, prompts.start.shape, None)

    def part(taken: np.ndarray) -> Answers:
        own = [jnp.take(x, taken, axis=0) for x in (*prompts, *([] if keys is None else [keys]))]
        return _plain(params, generator, own)

    with explained(f"{chosen.prompts} answers were written ({in_words(chosen.bytes)} estimated)", _half(chosen)):
        return jax.block_until_ready(_in_parts(part, len(prompts.tokens), chosen.prompts))


def _plain(params: PyTree, generator: Generator, rows: list[Any]) -> Answers:
    """Answers of one model to prompts, starts and keys `[n, …]`."""
    if not _apart(generator, params, len(rows[0]), rows[0]):
        return generator.compiled(params, *rows)

    def begin(live: np.int32) -> Paused:
        return generator.begun(params, live, *rows)

    def go_on(live: np.int32, count: jax.Array, paused: Paused, chosen: np.ndarray) -> Paused:
        del chosen
        return generator.gone_on(params, live, count, paused)

    return _on_device(in_segments(begin, go_on, len(rows[0])))


def _population_in_segments(
    members: Members, generator: Generator, rows: list[Any], axes: tuple, chosen: Fit
) -> Answers:
    """Answers of all members to their prompts, so many members at once."""
    size, prompts = len(members), rows[1].shape[-1]
    parts = []
    for first in range(0, size, chosen.members):
        who = np.arange(first, min(first + chosen.members, size))
        own = [x if axis is None else jnp.take(x, who * len(x) // size, 0) for x, axis in zip(rows, axes, strict=True)]
        if members.one_at_a_time:
            own = [x if axis is None else x[0] for x, axis in zip(own, axes, strict=True)]
            parts.append(_plain(members.materialize(first), generator, own))
            continue

        def begin(live: np.int32, who: np.ndarray = who, own: list[Any] = own) -> Paused:
            return members.some(who, generator.begin, live, *own, in_axes=(None, *axes))

        def go_on(
            live: np.int32, count: jax.Array, paused: Paused, chosen: np.ndarray, who: np.ndarray = who
        ) -> Paused:
            return members.some(who[chosen // prompts], generator.go_on, live, count, paused, in_axes=(None, None, 0))

        parts.append(in_segments(begin, go_on, len(who) * prompts, chosen.alone))
    tokens, length = (np.concatenate(x) for x in zip(*parts, strict=True))
    return _on_device(Answers(tokens.reshape(size, prompts, -1), length.reshape(size, prompts)))


def _apart(generator: Generator, params: PyTree, rows: int, tokens: Any) -> bool:
    """Whether rows that are not done are to go on by themselves."""
    return worthwhile(rows, generator.decoding, _config(generator, params), tokens.shape[-1])


def _on_device(answers: Answers) -> Answers:
    return Answers(*map(jnp.asarray, answers))


def population_fit(
    members: Members, generator: Generator, prompts: Prompts, *, budget: float | None = None, chunk: int | None = None
) -> Fit:
    """How many members write how many answers at once, within `budget` bytes on a device: see `generate`."""
    return _fit(members, *_asked(members, generator, prompts, jax.random.key(0), True), budget, chunk)


def _asked(
    members: Members, generator: Generator, prompts: Prompts, key: jax.Array | None, common: bool
) -> tuple[Generator | Writer, list[Any], tuple]:
    """(what is applied to the members, what it is given after the parameters, its axes over members or groups)."""
    if members.settings.noise == "weights":
        return generator, *_rows(len(members), generator, prompts, key, common)
    groups, shape = members.settings.groups, np.shape(prompts.start)
    if shape != ((1,) if groups == 1 else (groups, 1)):
        raise ValueError(
            f"got prompts {list(shape)} for {groups} groups of members under noise on activations, which write one "
            "answer each; [groups, 1] are required: ES(groups=...) as many as there are prompts."
        )
    keys = _keys(generator, key, shape, None if common else len(members))
    rows = [prompts.tokens.reshape(groups, -1), prompts.start.reshape(groups), jnp.arange(groups)]
    own = [] if keys is None else [keys.reshape(-1)]
    return writer(generator), rows + own, (None, None, 0) + (0,) * len(own)


def _each(fun: Generator | Writer, rows: list[Any]) -> int:
    """Answers of a member."""
    return 1 if isinstance(fun, Writer) else rows[1].shape[-1]


def _fit(
    members: Members,
    generator: Generator | Writer,
    rows: list[Any],
    axes: tuple,
    budget: float | None,
    chunk: int | None,
) -> Fit:
    settings, params = members.settings, members.params
    prompts, time, itemsize = _each(generator, rows), rows[0].shape[-1], _itemsize(params)
    config = _config(generator, params)
    if members.one_at_a_time:  # whatever is asked for
        # The perturbed copy is there as long as the member is.
        need = replace(answer_need(config, generator.decoding, time, itemsize=itemsize), noise=_size(params))
        return fit(need, members=1, prompts=prompts, budget=budget, unit=1)
    plan = members.plan_for(generator, *rows, in_axes=axes)
    if isinstance(generator, Writer):
        check_writes(plan)
    noise = plan.numbers * itemsize // settings.signs
    need = answer_need(config, generator.decoding, time, itemsize=itemsize, noise=noise)
    devices = 1 if settings.mesh is None else settings.mesh.shape["population"]
    chunk = int(settings.chunk) if chunk is None and settings.chunk != "auto" else chunk
    return fit(need, members=settings.size // devices, prompts=prompts, budget=budget, unit=settings.signs, chunk=chunk)


def _rows(
    population: int, generator: Generator, prompts: Prompts, key: jax.Array | None, common: bool
) -> tuple[list[Any], tuple]:
    """(what the generator is given after the parameters, its axes over members or groups)."""
    axis = 0 if np.ndim(prompts.tokens) == 3 else None
    keys = _keys(generator, key, np.shape(prompts.start), None if common else population)
    if keys is None:
        return list(prompts), (axis, axis)
    return [*prompts, keys], (axis, axis, axis if common else 0)


@contextmanager
def explained(what: str, advice: str) -> Iterator[None]:
    """Turns XLA's running out of memory into an error that says what to do.

    Raises:
        RunError: memory ran out.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as why:
        if isinstance(why, MemoryError) or "RESOURCE_EXHAUSTED" in str(why) or "ut of memory" in str(why):
            said = str(why).splitlines()[0] if str(why) else "nothing"
            raise RunError(f"memory ran out while {what}: {advice}. XLA said: {said}") from why
        raise


def _half(chosen: Fit) -> str:
    """What to do where the estimate was too small."""
    fewer = f", or {chosen.members // 2} members at once (--chunk, chunk=)" if chosen.members > 2 else ""
    less = f"allow {in_words(chosen.bytes / 2)} (--memory in GB, budget= in bytes){fewer}"
    return f"{less}, write fewer tokens, or use bfloat16 weights"


def _in_parts(part: Callable[[np.ndarray], Answers], prompts: int, at_once: int) -> Answers:
    """All prompts, part by part. The last part is filled up with the first prompts: one shape is compiled."""
    starts = range(0, prompts, at_once)
    answers = [part(np.arange(first, first + at_once) % prompts) for first in starts]
    if len(answers) == 1:
        return answers[0]
    return Answers(
        jnp.concatenate([a.tokens for a in answers], axis=-2)[..., :prompts, :],
        jnp.concatenate([a.length for a in answers], axis=-1)[..., :prompts],
    )


def _keys(generator: Generator, key: jax.Array | None, shape: tuple[int, ...], population: int | None) -> Any:
    """A key for every prompt, and for every member where each has its own; None where nothing is drawn."""
    if generator.decoding.temperature == 0:
        return None
    if key is None:
        raise ValueError(
            f"got no key at temperature={generator.decoding.temperature}; a key is required to draw tokens: key=..."
        )
    if population is not None:  # a row of prompts for each member, whatever its group
        shape = (population, shape[-1])
    # Threefry: another generator's draws for a prompt would depend on what else is in its batch.
    return jax.vmap(jax.random.fold_in, (None, 0))(as_threefry(key), jnp.arange(int(np.prod(shape)))).reshape(shape)


def _config(generator: Generator | Writer, params: PyTree) -> Any:
    return nnx.merge(generator.graphdef, params).config


def _size(params: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def _itemsize(params: PyTree) -> int:
    return jax.tree.leaves(params)[0].dtype.itemsize
