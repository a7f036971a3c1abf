"""Answers under noise on activations: a member writes one, which is read again for its gradient."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
from flax import nnx

from eggroll.engine.annotations import PyTree
from eggroll.llm.answers.decoding import Answers, Decoding, Generator, Paused, first_row, rest_of, row_keys
from eggroll.llm.model.decoder import Cache, Decoder, empty_cache
from eggroll.strategy.activations.walk import noiseless
from eggroll.training.errors import RunError

__all__ = ["UNDER_NOISE", "Writer", "writer"]

# Options of `ES`: noise on activations is on the outputs of the layers' matrices, in units of their size.
ON_LAYERS = {"noise": "activations", "relative": True, "rules": (("(?!layers/).*|.*norm", "frozen"),)}
UNDER_NOISE = {"weights": {}, "activations": ON_LAYERS}


class Writer:
    """Writes one answer for each member: `writer(params, tokens, start, which, key=None) -> Answers`.

    All prompts are read once, without noise; a member takes the cache of its own. Noise begins with the prompt's last
    token, of which the answer's first is made: a turn of the loop reads one token and chooses the next.

    Attributes:
        graphdef: of the decoder.
        decoding: how tokens are chosen.
    """

    def __init__(self, graphdef: nnx.GraphDef, decoding: Decoding) -> None:
        self.graphdef, self.decoding = graphdef, decoding

    def __repr__(self) -> str:
        return f"Writer({self.decoding})"

    def __call__(
        self, params: PyTree, tokens: jax.Array, start: jax.Array, which: jax.Array, key: jax.Array | None = None
    ) -> Answers:
        """The answer to prompt `which` of `tokens [prompts, time]`; see `Generator`.

        Args:
            params: of the decoder.
            tokens: `[prompts, time]` int32, padded on the left.
            start: `[prompts]` int32, pads of each.
            which: the prompt's number.
            key: above temperature 0, a key of this answer's own.

        Returns:
            `tokens [1, max_tokens]` and `length [1]`.
        """
        model, which = self._model(params), which[None]
        cache, start = self._read(params, tokens, start, which)
        row = first_row(tokens[which, -1], self.decoding)
        keys = None if key is None else row_keys(key[None], self.decoding, 1)
        return rest_of(model, Paused(row, cache, start, keys), tokens.shape[1] - 1, self.decoding).row.answers

    def wrote(self, outputs: Answers) -> jax.Array:
        """Turns `[R, T]` that chose a token of the answer, a stop token included."""
        return jnp.arange(self.decoding.max_tokens) < outputs.length

    def again(
        self,
        params: PyTree,
        outputs: Answers,
        tokens: jax.Array,
        start: jax.Array,
        which: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Reads the answers `[R, 1, T]` to prompts `which [R]`: the logits after the last, `[R, vocabulary]`."""
        del key
        cache, start = self._read(params, tokens, start, which)
        read = jnp.concatenate([tokens[which, -1:], outputs.tokens[:, 0, :-1]], axis=1)
        return self._model(params).extend(read, cache, tokens.shape[1] - 1, start)[0]

    def _read(self, params: PyTree, tokens: jax.Array, start: jax.Array, which: jax.Array) -> tuple[Cache, jax.Array]:
        """The caches of the chosen prompts, read but for their last token, and their pads."""
        batch, time = tokens.shape
        length = time + self.decoding.max_tokens - 1

        def read(params: PyTree, tokens: jax.Array, start: jax.Array) -> Cache:
            model = self._model(params)
            cache = empty_cache(model.config, batch, length, jax.tree.leaves(params)[0].dtype)
            return model.extend(tokens[:, :-1], cache, 0, start)[1] if time > 1 else cache

        cache = noiseless(read)(params, tokens, start)
        return Cache(*(jnp.take(x, which, axis=1) for x in cache)), start[which]

    def _model(self, params: PyTree) -> Decoder:
        model = nnx.merge(self.graphdef, params)
        if model.config.experts is not None:
            # Rows of an expert's products are in another order when an answer is read at once than when it was written.
            raise RunError(
                "got noise on activations for a mixture of experts, whose products have no row for each token; it "
                "needs noise='weights', which keeps every expert's matrix factored: leave --noise out."
            )
        return model


@lru_cache(maxsize=64)
def writer(generator: Generator) -> Writer:
    """The same for members under noise on activations, as the generator decodes."""
    return Writer(generator.graphdef, generator.decoding)
