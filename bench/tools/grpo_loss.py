"""What GRPO maximises: the clipped ratio of probabilities times the advantage within a group of answers.

References:
    Z. Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", arXiv
    2402.03300, equations 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


@dataclass(frozen=True)
class Objective:
    """Constants of the objective.

    Attributes:
        clip: ε, how far the ratio may leave 1 before it is held.
        kl: β, weight of the divergence from the model at the start. 0: none, and that model is not kept.
    """

    clip: float = 0.2
    kl: float = 0.0


class Batch(NamedTuple):
    """Sampled answers, one a row.

    Attributes:
        tokens: `[rows, time]` prompts, padded on the left.
        start: `[rows]` pads of each.
        answers: `[rows, most]` tokens.
        length: `[rows]` tokens of each answer, a stop token included.
        advantages: `[rows]`.
        old: `[rows, most]` log probabilities under the model that drew them; None: it is the present one.
        reference: `[rows, most]` under the model at the start; None without a divergence.
    """

    tokens: Any
    start: Any
    answers: Any
    length: Any
    advantages: Any
    old: Any = None
    reference: Any = None


def advantages(rewards: np.ndarray) -> np.ndarray:
    """`(r − mean)/std` within each group of answers to one prompt, `[prompts, answers]`; 0 where all are alike.

    Example:
        >>> advantages(np.array([[0.0, 2.0], [1.0, 1.0]])).tolist()
        [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = rewards - rewards.mean(1, keepdims=True)
    spread = rewards.std(1, keepdims=True)
    alike = spread <= 1e-9 * np.abs(rewards).max(1, keepdims=True, initial=1e-30)
    return np.where(alike, 0.0, centred / np.where(alike, 1.0, spread))


def log_probabilities(graphdef: nnx.GraphDef, params: Any, batch: Batch) -> jax.Array:
    """`[rows, most]` log probabilities of the answers' tokens, at temperature 1."""
    rows = jnp.concatenate([batch.tokens, batch.answers], axis=1)
    logits = nnx.merge(graphdef, params)(rows[:, :-1], batch.start)[:, batch.tokens.shape[1] - 1 :]
    chosen = jnp.take_along_axis(logits, batch.answers[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def loss(graphdef: nnx.GraphDef, objective: Objective, params: Any, batch: Batch) -> jax.Array:
    """The negative objective, summed over the rows: each is a mean over the tokens of its answer."""
    now = log_probabilities(graphdef, params, batch)
    return -row_objectives(objective, now, batch).sum()


def row_objectives(objective: Objective, now: jax.Array, batch: Batch) -> jax.Array:
    """`[rows]`, of log probabilities `now [rows, most]`."""
    old = jax.lax.stop_gradient(now) if batch.old is None else batch.old
    ratio, advantage = jnp.exp(now - old), batch.advantages[:, None]
    held = jnp.clip(ratio, 1 - objective.clip, 1 + objective.clip)
    gain = jnp.minimum(ratio * advantage, held * advantage)
    if objective.kl:
        apart = batch.reference - now
        gain = gain - objective.kl * (jnp.exp(apart) - apart - 1)
    counts = jnp.arange(now.shape[1]) < batch.length[:, None]
    return jnp.where(counts, gain, 0).sum(1) / jnp.maximum(batch.length, 1).astype(now.dtype)
