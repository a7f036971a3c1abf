"""The next token of every row from its logits: the likeliest, or drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NOTHING = -jnp.inf


def choose(
    logits: jax.Array, keys: jax.Array | None, *, temperature: float, top_k: int | None, top_p: float | None
) -> jax.Array:
    """Tokens `[batch]` from `logits [batch, vocabulary]`.

    Drawn by the Gumbel-max rule, `argmax(logits/temperature + G)`: with the same key two members draw the same token
    wherever their logits are alike, so what differs between them is due to their weights and not to luck.

    Args:
        logits: float32.
        keys: `[batch]`, one per row; None only at temperature 0.
        temperature: 0 takes the likeliest token.
        top_k: draw among the `top_k` likeliest tokens; None: among all.
        top_p: draw among the fewest likeliest tokens that together have this probability, after `top_k` and
            `temperature`; None: among all.

    Returns:
        int32.
    """
    if temperature == 0 or keys is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = allowed(logits / temperature, top_k=top_k, top_p=top_p)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], logits.dtype))(keys)
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)


def allowed(logits: jax.Array, *, top_k: int | None, top_p: float | None) -> jax.Array:
    """`logits [batch, vocabulary]` with −∞ wherever `top_k` or `top_p` forbids the token; ties with the last stay."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, NOTHING, logits)
    if top_p is not None and top_p < 1:
        shares = jax.nn.softmax(logits, axis=-1)
        logits = jnp.where(shares < nucleus(shares, top_p), NOTHING, logits)
    return logits


def nucleus(shares: jax.Array, mass: float) -> jax.Array:
    """The smallest probability `[batch, 1]` in the nucleus of `shares [batch, vocabulary]`, which has at least `mass`.

    The largest threshold `t` for which the shares of at least `t` sum to `mass`, found bit by bit: positive numbers are
    in the order of their bits. Thirty sums take a seventeenth of the time in which a CPU sorts a vocabulary.
    """

    def narrow(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = low + (high - low) // 2
        threshold = lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.where(shares >= threshold, shares, 0).sum(-1, keepdims=True) >= mass
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    least = jnp.zeros((len(shares), 1), jnp.int32)
    above_one = int(np.nextafter(np.float32(1.5), np.float32(2)).view(np.int32))  # a rounded share may exceed one
    bits = above_one.bit_length()
    low, _ = lax.fori_loop(0, bits, narrow, (least, least + above_one))
    return lax.bitcast_convert_type(low, jnp.float32)
