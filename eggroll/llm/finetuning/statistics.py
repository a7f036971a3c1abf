"""What answers are like whatever their reward, and how far a model has gone from the one that it was tuned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from eggroll.engine.annotations import PyTree
from eggroll.llm.answers.decoding import Answers, Decoding, Generator
from eggroll.llm.answers.generation import population_fit
from eggroll.llm.answers.memory import answer_need, fit
from eggroll.llm.answers.prompts import Prompts
from eggroll.strategy.members import Members
from eggroll.training.processes.talk import gather


@dataclass(frozen=True)
class Statistics:
    """Of many answers.

    Attributes:
        tokens: mean length, a stop token included.
        least: tokens of the shortest.
        most: tokens of the longest.
        truncated: share that had all tokens that it may have and did not end.
        empty: share without a visible character.
        distinct: different texts, as a share of the answers; in several processes, of those of each.
    """

    tokens: float
    least: int
    most: int
    truncated: float
    empty: float
    distinct: float

    @classmethod
    def of(cls, lengths: np.ndarray, texts: Sequence[str], truncated: np.ndarray) -> Statistics:
        """Of the answers of all processes together.

        Args:
            lengths: tokens of every answer of this process.
            texts: what each says.
            truncated: whether each was cut off.
        """
        lengths = np.asarray(lengths).reshape(-1)
        counted = [len(texts), lengths.sum(), truncated.sum(), sum(not text.strip() for text in texts), len({*texts})]
        total = gather(np.array(counted, np.float64)).sum(0)
        ends = gather(np.array([lengths.min(), -lengths.max()], np.int64)).min(0)
        tokens, cut, empty, distinct = (float(part / total[0]) for part in total[1:])
        return cls(tokens, int(ends[0]), -int(ends[1]), cut, empty, distinct)

    def record(self, before: str = "") -> dict[str, float]:
        """As numbers of a record, by names that begin in the same way."""
        named = {"answer_tokens": self.tokens, "answer_tokens_least": self.least, "answer_tokens_most": self.most}
        shares = {"truncated": self.truncated, "empty": self.empty, "distinct": self.distinct}
        return {before + name: round(value, 6) for name, value in {**named, **shares}.items()}


NAMES = tuple(Statistics(0, 0, 0, 0, 0, 0).record())


def divergence(graphdef: nnx.GraphDef, params: PyTree, base: PyTree, prompts: Prompts, answers: Answers) -> float:
    """Mean over the answers' tokens of the divergence KL(model ‖ base) of the next token's distribution, in nats.

    Args:
        graphdef: of the decoder.
        params: of the model, which wrote the answers.
        base: of the one that it is compared with.
        prompts: `[rows, time]`.
        answers: `[rows, max_tokens]`.
    """
    total = _divergences(graphdef)(params, base, *prompts, *answers)
    return float(np.asarray(total, np.float64).sum() / np.asarray(answers.length).sum())


def divergences_of_members(
    members: Members,
    generator: Generator,
    prompts: Prompts,
    answers: Answers,
    base: PyTree,
    *,
    budget: float | None = None,
    chunk: int | None = None,
) -> jax.Array:
    """KL(member ‖ base) of every answer, in nats a token: what `--kl` asks of rewards.

    The mean, over the answer's tokens, of the divergence of the next token's two distributions behind what the member
    wrote before: of estimates by log-probabilities of sampled tokens the one with their sampling summed out, exact for
    each token, never below zero, unbiased where answers are drawn at temperature 1. GRPO's needs the same logits. Where
    answers are greedy it is the divergence along them.

    Args:
        members: who wrote.
        generator: by which.
        prompts: as they were given to `eggroll.llm.generate`.
        answers: what that returned.
        base: parameters of the other model.
        budget: bytes that this may take on a device. Default None: what is free, in part.
        chunk: members at once, at most. Default None.

    Returns:
        `[population, prompts]`.

    References:
        A. Amini, T. Vieira, R. Cotterell, "Better Estimation of the Kullback-Leibler Divergence Between Language
        Models", arXiv 2504.10637. Z. Shao et al., "DeepSeekMath" (GRPO), arXiv 2402.03300.
    """
    at_once = read_at_once(members, generator, prompts, base, budget=budget, chunk=chunk)
    axis = 0 if np.ndim(prompts.tokens) == 3 else None
    given = (base, *map(jnp.asarray, prompts), *answers)
    total = members.apply(divergences(generator.graphdef), *given, in_axes=(None, axis, axis, 0, 0), chunk=at_once)
    return total / answers.length.astype(jnp.float32)


def read_at_once(
    members: Members,
    generator: Generator,
    prompts: Prompts,
    base: PyTree,
    *,
    budget: float | None = None,
    chunk: int | None = None,
) -> int:
    """How many members `divergences_of_members` reads at once; raises `RunError` where memory does not suffice."""
    config, itemsize = nnx.merge(generator.graphdef, base).config, jax.tree.leaves(base)[0].dtype.itemsize
    most = generator.decoding.max_tokens
    need = answer_need(config, Decoding(1), prompts.tokens.shape[-1] + most - 1, itemsize=itemsize)
    logits = 4 * most * config.vocabulary * 4  # of both models, and their logarithms
    need = replace(need, cache=0, logits=logits, activations=2 * need.activations)
    writing = population_fit(members, generator, prompts, budget=budget, chunk=chunk).members
    unit = min(members.settings.signs, writing)
    return fit(need, members=writing, prompts=1, budget=budget, unit=unit).members


@lru_cache(maxsize=8)
def _divergences(graphdef: nnx.GraphDef) -> Callable[..., jax.Array]:
    return jax.jit(divergences(graphdef))


@lru_cache(maxsize=8)
def divergences(graphdef: nnx.GraphDef) -> Callable[..., jax.Array]:
    """`(params, base, tokens, start, said, length)` → sums over every row's answer, `[rows]`; see `divergence`.

    Row by row, as logits of a whole batch would not fit.
    """

    def run(
        params: PyTree, base: PyTree, tokens: jax.Array, start: jax.Array, said: jax.Array, length: jax.Array
    ) -> jax.Array:
        first = tokens.shape[1] - 1  # where the answer's first token is chosen
        read = jnp.concatenate([jnp.asarray(tokens, said.dtype), said[:, :-1]], axis=1)

        def row(one: tuple[jax.Array, ...]) -> jax.Array:
            tokens, start, length = one
            logits = (nnx.merge(graphdef, p)(tokens[None], start[None])[0, first:] for p in (params, base))
            own, other = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in logits)
            each = jnp.sum(jnp.exp(own) * (own - other), axis=-1)
            return jnp.sum(jnp.where(jnp.arange(len(each)) < length, each, 0))

        return lax.map(row, (read, jnp.asarray(start), length))

    return run
