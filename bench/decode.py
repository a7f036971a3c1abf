"""How fast does a whole population write, in per cent of plain batched decoding of the same model?

A decoder writes `--tokens` tokens after a prompt of `--prompt` tokens, once for every member and prompt: by
`members.apply` of `eggroll.llm.generator`, every member from a prompt of its own, and by one jitted call of the same
function with the unperturbed weights and all prompts as one batch. Greedy, without stop tokens, so that both write the
same number of tokens; prefill is part of both.

Then the same where answers differ in length: one in `--every` runs to `--long` tokens, the others end after `--short`.
The wasted share is of row turns, each of which computes a token of one row, and is counted for three ways: all rows of
a chunk until the last is done; segments, in which rows that are not done go on by themselves, as `eggroll.llm.generate`
has them; and slots, a quarter as many as rows, that each take the next waiting row. The first two are timed.

`--model FOLDER` takes real weights; else random ones of SmolLM2-135M's shape, with `--layers` and `--vocabulary` of
one's choice. Full rank is `eggroll.FullRankES` with a few members: every member's weights are made, then used for its
prompt alone. A generation is the answers of all members and the update; full rank's, both parts of which are made
member by member, is scaled to the population.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

import eggroll
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.timing import Timing, interleave
from eggroll.llm import Decoder, DecoderConfig, Decoding, generate, generator, load
from eggroll.llm.answers.decoding import split
from eggroll.llm.answers.generation import population_fit
from eggroll.llm.answers.memory import answer_need
from eggroll.llm.answers.prompts import Prompts
from eggroll.llm.answers.segments import schedule

SIGMA = 0.001
# SmolLM2-135M: huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, config.json.
SMOLLM2 = {"width": 576, "hidden": 1536, "heads": 9, "key_value_heads": 3, "head_width": 64, "context": 8192}
QUICK = {"population": 8, "layers": 1, "vocabulary": 512, "tokens": 4, "full_rank_members": 2, "rounds": 3}
QUICK |= {"long": 20, "short": 2}
STOP = 1  # token


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.decode.

    Attributes:
        model: Hugging Face folder; none: random weights.
        population: members.
        prompts: of a member.
        prompt: tokens of a prompt.
        tokens: written after it.
        layers: of the random model.
        vocabulary: of the random model.
        dtype: of the weights.
        rank: columns of each noise factor.
        chunk: members at once, or `auto`: as many as `eggroll.llm.generate` chooses.
        rounds: turns of each candidate.
        seconds: after these, three turns are enough.
        full_rank_members: of the full-rank population; 0: none.
        long: tokens of the long answers where they differ; 0: that is not measured.
        short: tokens of the others.
        every: one answer in so many is long.
    """

    model: str | None = None
    population: int = 256
    prompts: int = 1
    prompt: int = 8
    tokens: int = 24
    layers: int = 30
    vocabulary: int = 49152
    dtype: Literal["float32", "bfloat16"] = "float32"
    rank: int = 1
    chunk: int | Literal["auto"] = "auto"
    rounds: int = 5
    seconds: float = 60.0
    full_rank_members: int = 4
    long: int = 256
    short: int = 10
    every: int = 5


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    row = measure(options)
    report = Report("decode", options, [row], notes=NOTES, summary=row)
    report.finish(quick=options.quick, out=options.out)


def measure(o: Options) -> dict[str, Any]:
    """The figures of one model and population."""
    if o.quick:
        o = Options(**{**vars(o), **QUICK})
    graphdef, params = model_of(o)
    timings = interleave(candidates(o, graphdef, params), rounds=o.rounds, most_seconds=o.seconds)
    found = memory(o, graphdef, params) | row(o, timings)
    return found | unequal(o, graphdef, params) if o.long else found


def model_of(o: Options) -> tuple[Any, Any]:
    """`(graphdef, params)`."""
    if o.model is not None:
        return split(load(o.model, dtype=o.dtype).model)
    config = DecoderConfig(vocabulary=o.vocabulary, layers=o.layers, **SMOLLM2)
    graphdef, shapes = split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(o.dtype))))
    rng = np.random.default_rng(0)
    return graphdef, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.04, x.shape), x.dtype), shapes)


def candidates(o: Options, graphdef: Any, params: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    fun = generator(graphdef, Decoding(o.tokens))
    config = nnx.merge(graphdef, params).config
    shape = o.population, o.prompts, o.prompt
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, config.vocabulary, shape), jnp.int32)
    start = jnp.zeros(shape[:2], jnp.int32)
    es = eggroll.ES(population=o.population, sigma=SIGMA, rank=o.rank, chunk=o.chunk, fallback="error")
    state, chunk = es.init(params, jax.random.key(0)), None if o.chunk == "auto" else o.chunk
    plain, flat = jax.jit(fun), (tokens.reshape(-1, o.prompt), start.reshape(-1))
    calls = {
        "plain": lambda: plain(params, *flat),
        "eggroll": lambda: generate(es.ask(state), fun, Prompts(tokens, start), chunk=chunk),
        "eggroll_update": update(es, state),
    }
    if n := o.full_rank_members:
        full = eggroll.FullRankES(population=n, sigma=SIGMA)
        full_state = full.init(params, jax.random.key(0))
        calls["full_rank"] = lambda: full.ask(full_state).apply(fun, tokens[:n], start[:n], in_axes=0)
        calls["full_rank_update"] = update(full, full_state)
    return calls


def update(es: eggroll.ES, state: Any) -> Callable[[], Any]:
    """The update of a generation, the noise made anew."""
    rewards = jnp.asarray(np.random.default_rng(2).normal(size=es.population), jnp.float32)
    return lambda: es.tell(state, es.ask(state), rewards)[0].params


class Ending(Decoder):
    """Ends an answer after `short` of `long` tokens where its prompt has no pad, and never where it has one."""

    long: int
    short: int

    def extend(self, tokens: Any, cache: Any, offset: Any, start: Any = None) -> Any:
        """As `Decoder.extend`; what is chosen after it is token `number` of the answer."""
        number = offset + tokens.shape[1] - cache.keys.shape[3] + self.long
        logits, cache = super().extend(tokens, cache, offset, start)
        ends = (start == 0) & (number == self.short)
        return logits.at[:, STOP].set(jnp.where(ends, 1e9, -1e9)), cache


def unequal(o: Options, graphdef: Any, params: Any) -> dict[str, Any]:
    """The figures where one answer in `o.every` is long."""
    model = nnx.merge(graphdef, params)
    model.__class__ = type("Ending", (Ending,), {"long": o.long, "short": o.short})
    fun = generator(split(model)[0], Decoding(o.long, stop=(STOP,)))
    shape, rng = (o.population, o.prompts), np.random.default_rng(3)
    long = rng.permutation(np.arange(o.population * o.prompts) % o.every == 0).reshape(shape)
    tokens = jnp.asarray(rng.integers(2, model.config.vocabulary, (*shape, o.prompt)), jnp.int32)
    asked, chunk = Prompts(tokens, jnp.asarray(long, jnp.int32)), None if o.chunk == "auto" else o.chunk
    es = eggroll.ES(population=o.population, sigma=SIGMA, rank=o.rank, fallback="error")
    state = es.init(params, jax.random.key(0))
    chosen = population_fit(es.ask(state), fun, asked, chunk=chunk)
    calls = {
        "together": lambda: es.ask(state).apply(fun, *asked, in_axes=0, chunk=chosen.members),
        "segments": lambda: generate(es.ask(state), fun, asked, chunk=chunk),
    }
    lengths = np.where(long, o.long, o.short)
    for name, call in calls.items():
        if not np.array_equal(call().length, lengths):
            raise AssertionError(f"{name}: answers have other lengths than the bench gave them")
    timings = interleave(calls, rounds=o.rounds, most_seconds=o.seconds)
    parts = [lengths[i : i + chosen.members].reshape(-1) for i in range(0, o.population, chosen.members)]
    return {
        "unequal_chunk": chosen.members,
        **{f"waste_percent_{name}": value for name, value in wastes(parts, o.long).items()},
        **{f"unequal_tokens_per_second_{name}": lengths.sum() / t.median for name, t in timings.items()},
        "segments_over_together": timings["together"].ratio(timings["segments"]).median,
    }


def wastes(parts: list[np.ndarray], most: int) -> dict[str, float]:
    """Per cent of row turns that write nothing, of answers of these lengths, chunk by chunk; see the head."""
    written = sum(int(part.sum()) for part in parts)
    turns = {
        "together": sum(len(part) * int(part.max()) for part in parts),
        "segments": sum(rows * n for part in parts for rows, n in schedule(part, most)),
        "slots": sum(slotted(part, max(len(part) // 4, 1)) for part in parts),
    }
    return {name: 100 * (1 - written / n) for name, n in turns.items()}


def slotted(lengths: np.ndarray, slots: int) -> int:
    """Row turns of slots of which each takes the next waiting row as soon as its own is done, until all are."""
    free = [0] * slots
    for length in lengths.tolist():
        heapq.heapreplace(free, free[0] + length)
    return slots * max(free)


def memory(o: Options, graphdef: Any, params: Any) -> dict[str, Any]:
    """Bytes of the model, and what a member takes beside it: noise, or a perturbed copy; and what its answers take."""
    config = nnx.merge(graphdef, params).config
    itemsize = jnp.dtype(o.dtype).itemsize
    size = sum(x.size for x in jax.tree.leaves(params))
    need = answer_need(config, Decoding(o.tokens), o.prompt, itemsize=itemsize, noise=1)
    es = eggroll.ES(population=2, rank=o.rank, fallback="error")
    rows = jnp.zeros((2, o.prompts, o.prompt), jnp.int32), jnp.zeros((2, o.prompts), jnp.int32)
    members = es.ask(es.init(params, jax.random.key(0)))
    factors = members.plan_for(generator(graphdef, Decoding(o.tokens)), *rows, in_axes=0).numbers * itemsize // 2
    return {
        "parameters": size,
        "model_bytes": size * itemsize,
        "noise_bytes_of_a_member": factors,
        "answer_bytes": need.answer,
        "bytes_of_a_member": factors + o.prompts * need.answer,
        "full_rank_bytes_of_a_member": size * itemsize + o.prompts * need.answer,
    }


def row(o: Options, timings: dict[str, Timing]) -> dict[str, Any]:
    """The figures of one run."""
    plain, low_rank = timings["plain"], timings["eggroll"]
    written = o.population * o.prompts * o.tokens
    share = plain.ratio(low_rank)
    found = {
        "population": o.population,
        "prompts": o.prompts,
        "plain_tokens_per_second": written / plain.median,
        "eggroll_tokens_per_second": written / low_rank.median,
        "percent_of_plain": 100 * share.median,
        "low": 100 * share.low,
        "high": 100 * share.high,
        "rounds": len(plain.seconds),
    }
    if "full_rank" in timings:
        found |= generations(timings, o.population / o.full_rank_members)
    return found


def generations(timings: dict[str, Timing], more: float) -> dict[str, float]:
    """A second, of both methods; `more`: the population over full rank's, whose time grows with it."""
    ours = added(timings, "eggroll", "eggroll_update", 1.0)
    full = added(timings, "full_rank", "full_rank_update", more)
    return {
        "generations_per_second": 1 / ours.median,
        "full_rank_generations_per_second": 1 / full.median,
        "update_percent_of_a_generation": 100 * timings["eggroll_update"].ratio(ours).median,
        "generations_over_full_rank": full.ratio(ours).median,
    }


def added(timings: dict[str, Timing], first: str, second: str, times: float) -> Timing:
    """Both, round by round."""
    pairs = zip(timings[first].seconds, timings[second].seconds, strict=True)
    return Timing(first, tuple(times * (a + b) for a, b in pairs))


NOTES = [
    "plain: one jitted call of the same function, unperturbed weights, all members' prompts as one batch; percent: its "
    "time over the population's, median over rounds, with quartiles.",
    "generations: answers of the whole population and the update, without scoring; full rank's measured with fewer "
    "members and scaled.",
]

if __name__ == "__main__":
    main()
