"""What answers are like whatever their reward, and how far a model has gone from the one that it was tuned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from eggroll.engine.annotations import PyTree
from eggroll.llm.answers.decoding import Answers
from eggroll.llm.answers.prompts import Prompts
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
