"""One update of GRPO: a group of answers for each prompt is drawn, scored, and followed by backpropagation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bench.tools.grpo_loss import Batch, Objective, advantages, log_probabilities, loss

Generate = Callable[..., Any]  # from eggroll.llm.generator
Score = Callable[[Any], np.ndarray]  # answers, the answers of a prompt side by side → rewards [rows]


@dataclass(frozen=True)
class Recipe:
    """How GRPO is run.

    Attributes:
        answers: drawn for each prompt, at least 2.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        max_norm: the gradient is clipped to this norm.
        objective: clipping and divergence.
        epochs: updates with the same answers.
        microbatch: answers that are backpropagated through at once; has to divide all of them.
    """

    answers: int = 8
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    max_norm: float = 1.0
    objective: Objective = field(default_factory=Objective)
    epochs: int = 1
    microbatch: int = 8


class Grpo:
    """Parameters in float32 that move by GRPO.

    Args:
        graphdef: of a decoder.
        params: its parameters; they are copied.
        generate: draws answers at temperature 1.
        recipe: how.

    Attributes:
        params: the present ones.
        tokens: generated so far, stop tokens included.
    """

    def __init__(self, graphdef: nnx.GraphDef, params: Any, generate: Generate, recipe: Recipe) -> None:
        self.recipe, self.tokens = recipe, 0
        self.params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
        self._reference = params if recipe.objective.kl else None
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(recipe.max_norm),
            optax.adamw(recipe.learning_rate, weight_decay=recipe.weight_decay),
        )
        self._opt_state = self._optimizer.init(self.params)
        self._generate = jax.jit(generate)
        self._log_probabilities = jax.jit(partial(log_probabilities, graphdef))
        self._add_gradient = jax.jit(partial(_add_gradient, graphdef, recipe.objective), donate_argnums=0)
        self._apply = jax.jit(self._moved, donate_argnums=(1, 2))

    def step(self, tokens: np.ndarray, start: np.ndarray, score: Score, key: jax.Array) -> dict[str, float]:
        """One round: answers to these prompts, and `recipe.epochs` updates.

        Args:
            tokens: `[prompts, time]`, padded on the left.
            start: `[prompts]` pads of each.
            score: what the answers are worth.
            key: for drawing them.

        Returns:
            Mean reward and its standard deviation, the share of prompts whose answers differ in reward, mean length,
            the loss, and the gradient's norm before clipping.
        """
        recipe = self.recipe
        tokens, start = (np.repeat(x, recipe.answers, axis=0) for x in (tokens, start))
        answers = jax.device_get(self._generate(self.params, tokens, start, key))
        rewards = np.asarray(score(answers), np.float64)
        self.tokens += int(answers.length.sum())
        gains = advantages(rewards.reshape(-1, recipe.answers))
        batch = Batch(tokens, start, answers.tokens, answers.length, gains.reshape(-1).astype(np.float32))
        batch = self._with_old(batch)
        found = [self._update(batch) for _ in range(recipe.epochs)]
        return {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            "useful_prompts": float((gains != 0).any(1).mean()),
            "answer_tokens": float(answers.length.mean()),
            **found[-1],
        }

    def _with_old(self, batch: Batch) -> Batch:
        """Adds the log probabilities that the objective compares with."""
        old = self._of_all(self.params, batch) if self.recipe.epochs > 1 else None
        reference = None if self._reference is None else self._of_all(self._reference, batch)
        return batch._replace(old=old, reference=reference)

    def _of_all(self, params: Any, batch: Batch) -> np.ndarray:
        return np.concatenate([self._log_probabilities(params, part) for part in self._parts(batch)])

    def _update(self, batch: Batch) -> dict[str, float]:
        rows = len(batch.length)
        gradient = jax.tree.map(jnp.zeros_like, self.params)
        total = 0.0
        for part in self._parts(batch):
            gradient, value = self._add_gradient(gradient, self.params, part, np.float32(1 / rows))
            total += float(value)
        self.params, self._opt_state, norm = self._apply(gradient, self.params, self._opt_state)
        return {"loss": total, "gradient_norm": float(norm)}

    def _parts(self, batch: Batch) -> list[Batch]:
        rows, size = len(batch.length), self.recipe.microbatch
        if rows % size:
            raise ValueError(f"got {rows} answers and microbatch={size}, which must divide them.")
        return [jax.tree.map(lambda x, i=i: x[i : i + size], batch) for i in range(0, rows, size)]

    def _moved(self, gradient: Any, params: Any, opt_state: Any) -> tuple[Any, Any, jax.Array]:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
            change, opt_state = self._optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, change), opt_state, optax.tree.norm(gradient)


def _add_gradient(
    graphdef: nnx.GraphDef, objective: Objective, total: Any, params: Any, batch: Batch, share: Any
) -> tuple[Any, jax.Array]:
    """Adds a microbatch's share of the gradient."""
    value, gradient = jax.value_and_grad(lambda p: share * loss(graphdef, objective, p, batch))(params)
    return jax.tree.map(jnp.add, total, gradient), value
