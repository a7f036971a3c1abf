"""Random programs of a few parameters: what they are made of is drawn from a seed, and printed as it is run.

A program is a list of steps over a growing list of values: parameters first, then inputs, then what the steps made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Rng = np.random.Generator
Made = tuple[str, tuple[int, ...], Callable[..., Any]]
Maker = Callable[[Rng, list[tuple[int, ...]], Callable[..., int]], Made]

SIZES = (1, 2, 3, 4)
LARGEST = 300  # elements of a value
DECIDING = 0.1234  # what decides is compared with it: of a value that is 0 but for rounding, the sign is rounding's


@dataclass(frozen=True)
class Step:
    """`values.append(call(*values[inputs]))`."""

    name: str
    inputs: tuple[int, ...]
    call: Callable[..., Any]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'v{i}' for i in self.inputs)})"


@dataclass(frozen=True)
class Program:
    """A function of parameters and inputs.

    Attributes:
        shapes: of the parameters and inputs.
        steps: what it does.
        outputs: numbers of the values that it returns.
    """

    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def __call__(self, params: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs."""
        values = [*params, *inputs]
        for step in self.steps:
            values.append(step.call(*(values[i] for i in step.inputs)))
        return [values[i] for i in self.outputs]

    def __str__(self) -> str:
        lines = [f"v{i}: {shape}" for i, shape in enumerate(self.shapes)]
        lines += [f"v{len(self.shapes) + i} = {step}" for i, step in enumerate(self.steps)]
        return "\n".join([*lines, f"return {', '.join(f'v{i}' for i in self.outputs)}"])


def random_program(rng: Rng, n_params: int = 3, n_inputs: int = 2, n_steps: int = 8) -> Program:
    """Draws a program whose steps fit the shapes of their inputs."""
    shapes = [tuple(int(n) for n in rng.choice(SIZES[1:], rng.integers(2, 4))) for _ in range(n_params)]
    shapes += [tuple(int(n) for n in rng.choice(SIZES, rng.integers(1, 4))) for _ in range(n_inputs)]
    known, steps = list(shapes), []
    for _ in range(20 * n_steps):
        if len(steps) == n_steps:
            break
        try:
            name, inputs, call = MAKERS[rng.integers(len(MAKERS))](rng, known, _picker(rng, known, n_params))
            out = jax.eval_shape(call, *(jax.ShapeDtypeStruct(known[i], jnp.float64) for i in inputs))
        except (TypeError, ValueError, IndexError, ZeroDivisionError):
            continue
        if out.dtype == jnp.float64 and 0 < out.size <= LARGEST and out.ndim <= 4:
            steps.append(Step(name, inputs, call))
            known.append(out.shape)
    return Program(tuple(shapes), tuple(steps), (len(known) - 2, len(known) - 1))


def _picker(rng: Rng, shapes: list[tuple[int, ...]], n_params: int) -> Callable[..., int]:
    """Of the values that a condition fits: mostly parameters, and what was made last."""

    def pick(fits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> int:
        found = [i for i, shape in enumerate(shapes) if fits(shape)]
        if not found:
            raise ValueError("no value fits")
        late = [i for i in found if i < n_params or i >= len(shapes) - 3]
        return int(rng.choice(late if late and rng.random() < 0.8 else found))

    return pick


def _axis(rng: Rng, shape: Sequence[int]) -> int:
    return int(rng.integers(len(shape)))


def _masked(mask: Any) -> Callable[..., Any]:
    return lambda v: jnp.where(mask, v, 0.1)


# One value, changed. `s` is its shape, `a` an axis, `k` a small number.
UNARY: dict[str, Callable[[Rng, tuple[int, ...], int, int], Callable[..., Any]]] = {
    "neg": lambda rng, s, a, k: lambda v: -v,
    "times a constant": lambda rng, s, a, k: lambda v: v * 0.7,
    "tanh": lambda rng, s, a, k: jnp.tanh,
    "square": lambda rng, s, a, k: jnp.square,
    "abs": lambda rng, s, a, k: jnp.abs,
    "relu": lambda rng, s, a, k: jax.nn.relu,
    "clip": lambda rng, s, a, k: lambda v: jnp.clip(v, -0.5, 0.9),
    "bounded": lambda rng, s, a, k: lambda v: v / (1 + v * v),
    "softmax": lambda rng, s, a, k: lambda v: jax.nn.softmax(v, a),
    "transpose": lambda rng, s, a, k: partial(jnp.transpose, axes=tuple(rng.permutation(len(s)))),
    "flatten": lambda rng, s, a, k: lambda v: v.reshape(-1),
    "reshape": lambda rng, s, a, k: lambda v: v.reshape(*s[: a + 1], -1),
    "split an axis": lambda rng, s, a, k: lambda v: v.reshape(*s[:a], 2, -1, *s[a + 1 :]),
    "flip": lambda rng, s, a, k: lambda v: jnp.flip(v, a),
    "roll": lambda rng, s, a, k: lambda v: jnp.roll(v, k, a),
    "slice": lambda rng, s, a, k: lambda v: lax.slice_in_dim(v, s[a] // 3, s[a], axis=a),
    "strided": lambda rng, s, a, k: lambda v: lax.slice_in_dim(v, 0, s[a], 2, a),
    "one index": lambda rng, s, a, k: lambda v: lax.index_in_dim(v, s[a] - 1, a, keepdims=False),
    "split": lambda rng, s, a, k: lambda v: jnp.split(v, [1], a)[-1],
    "new axis": lambda rng, s, a, k: lambda v: jnp.expand_dims(v, a),
    "broadcast": lambda rng, s, a, k: lambda v: jnp.broadcast_to(v, (2, *s)),
    "pad": lambda rng, s, a, k: lambda v: jnp.pad(v, [(k % 2, 1) if i == a else (0, 0) for i in range(len(s))]),
    "pad with ones": lambda rng, s, a, k: lambda v: lax.pad(v, 1.0, [(1, -1, k % 2)] + [(0, 0, 0)] * (len(s) - 1)),
    "tile": lambda rng, s, a, k: lambda v: jnp.tile(v, [2 if i == a else 1 for i in range(len(s))]),
    "repeat": lambda rng, s, a, k: lambda v: jnp.repeat(v, 2, a),
    "take": lambda rng, s, a, k: partial(jnp.take, indices=rng.integers(s[a], size=k + 1), axis=a),
    "take and fill": lambda rng, s, a, k: lambda v: jnp.take(v, np.array([0, 9]), a, mode="fill", fill_value=0.3),
    "take along": lambda rng, s, a, k: partial(
        jnp.take_along_axis, indices=rng.integers(s[a], size=s), axis=a
    ),
    "take along, shared": lambda rng, s, a, k: lambda v: jnp.take_along_axis(
        v, jnp.broadcast_to(jnp.arange(s[a])[::-1].reshape([-1 if i == a else 1 for i in range(len(s))]), s), a
    ),
    "dynamic slice": lambda rng, s, a, k: lambda v: lax.dynamic_slice_in_dim(v, jnp.argmax(jnp.arange(k + 1)), 1, a),
    "rows set": lambda rng, s, a, k: lambda v: v.at[np.array([0, s[0] - 1, 0])].set(0.2),
    "rows added": lambda rng, s, a, k: lambda v: v.at[np.array([0, 0])].add(v[:1] * 2),
    "a row moved": lambda rng, s, a, k: lambda v: v.at[0].set(v[-1]),
    "a block set": lambda rng, s, a, k: lambda v: v.at[:1, :1].set(0.4),
    "window": lambda rng, s, a, k: lambda v: lax.dynamic_update_slice(v, v[:1] * 2, [k] + [0] * (len(s) - 1)),
    "into zeros": lambda rng, s, a, k: lambda v: jnp.zeros((s[0] + 1, *s[1:])).at[np.arange(s[0])[::-1]].set(v),
    "mask of an axis": lambda rng, s, a, k: _masked(
        rng.random([n if i == a else 1 for i, n in enumerate(s)]) < 0.5
    ),
    "mask": lambda rng, s, a, k: _masked(rng.random(s) < 0.5),
    "triangle": lambda rng, s, a, k: jnp.tril,
    "scaled along": lambda rng, s, a, k: partial(jnp.multiply, rng.normal(size=s[-1])),
    "a sum": lambda rng, s, a, k: lambda v: v.sum(a),
    "the sum": lambda rng, s, a, k: jnp.sum,
    "minus its mean": lambda rng, s, a, k: lambda v: v - v.mean(a, keepdims=True),
    "normed": lambda rng, s, a, k: lambda v: v / (0.1 + jnp.sqrt((v * v).sum(a, keepdims=True))),
    "norm": lambda rng, s, a, k: jnp.linalg.norm,
    "max": lambda rng, s, a, k: lambda v: v.max(a),
    "sorted": lambda rng, s, a, k: lambda v: jnp.sort(v, a),
    "summed up": lambda rng, s, a, k: lambda v: lax.cumsum(v, a, reverse=k % 2 == 1),
    "multiplied up": lambda rng, s, a, k: lambda v: jnp.cumprod(v, a),
    "fft": lambda rng, s, a, k: lambda v: jnp.fft.fft(v, axis=a).imag,
    "fft2": lambda rng, s, a, k: lambda v: (jnp.fft.fft2(v) * (1 + 2j)).real,
    "there and back": lambda rng, s, a, k: lambda v: jnp.fft.irfft(jnp.fft.rfft(v, axis=a) * 2j, n=s[a], axis=a),
    "complex": lambda rng, s, a, k: lambda v: (jnp.conj(lax.complex(v, v * 2)) * 1j).imag,
    "jit": lambda rng, s, a, k: jax.jit(lambda v: 2 * v),
    "remat": lambda rng, s, a, k: jax.checkpoint(lambda v: jnp.sin(v) + v),
    "silu": lambda rng, s, a, k: jax.nn.silu,
    "float32 and back": lambda rng, s, a, k: lambda v: lax.stop_gradient(v) * 0.5,
    "barrier": lambda rng, s, a, k: lax.optimization_barrier,
    "rows by vmap": lambda rng, s, a, k: jax.vmap(lambda r: r / (1 + jnp.sum(r * r)), a, a),
    "rows by map": lambda rng, s, a, k: partial(
        lax.map, [jnp.tanh, lambda r: r * 0.5, lambda r: r / (1 + jnp.sum(r * r))][k]
    ),
    "rows by scan": lambda rng, s, a, k: lambda v: lax.scan(lambda c, r: (c * 0.5 + r, c - r), v[0], v)[k % 2],
    "rows backwards": lambda rng, s, a, k: lambda v: lax.scan(lambda c, r: (c, r), 0.0, v, reverse=True)[1],
    "carried": lambda rng, s, a, k: lambda v: lax.fori_loop(0, k, lambda i, c: c * 0.5 if k % 2 else c, v),
    "a loop that stops": lambda rng, s, a, k: lambda v: lax.while_loop(
        lambda c: (c[0] < k) & (jnp.sum(c[1]) < 1e3), lambda c: (c[0] + 1, c[1] + 0.1), (0, v)
    )[1],
    "cond": lambda rng, s, a, k: lambda v: lax.cond(jnp.argmax(jnp.arange(3)) == k, lambda v: v * 2, lambda v: -v, v),
    "cond of a value": lambda rng, s, a, k: lambda v: lax.cond(v.sum() > DECIDING, lambda: v * 2, lambda: v[::-1]),
}  # fmt: skip


def _unary(name: str) -> Maker:
    def make(rng: Rng, shapes: list[tuple[int, ...]], pick: Callable[..., int]) -> Made:
        i = pick(lambda shape: len(shape) > 0)
        axis = _axis(rng, shapes[i])
        return name, (i,), UNARY[name](rng, shapes[i], axis, int(rng.integers(3)))

    return make


def _contract(v: Any, w: Any, axes: tuple[int, int]) -> Any:
    return jnp.tensordot(v, w, ((axes[0],), (axes[1],)))


def _convolved(x: Any, kernel: Any) -> Any:
    image = jnp.broadcast_to(x.reshape(-1)[: kernel.shape[1]], (1, 5, kernel.shape[1])) * jnp.arange(1.0, 6)[:, None]
    return lax.conv_general_dilated(image, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))[0]


def _layers(h: Any, w: Any) -> Any:
    return lax.scan(lambda c, layer: (jnp.tanh(c @ layer), c @ layer), h, w)[0]


def _recurrent(h: Any, w: Any) -> Any:
    return lax.scan(lambda c, i: (jnp.tanh(c @ w) + i, c), h, jnp.arange(2.0))[0]


def _until(h: Any, w: Any) -> Any:
    return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, h))[1]


def _updated(v: Any, w: Any) -> Any:
    return lax.dynamic_update_slice(w, v, [1] * w.ndim)


def _grouped(x: Any, w: Any) -> Any:
    return lax.ragged_dot(x, w, jnp.arange(w.shape[0]) % 2 + (x.sum() > DECIDING).astype(int))


def _matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2


def _square(shape: tuple[int, ...]) -> bool:
    return _matrix(shape) and shape[0] == shape[1]


def _has_end(n: int) -> Callable[[tuple[int, ...]], bool]:
    return lambda shape: len(shape) > 0 and shape[-1] == n


def _stack(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3


def _stack_of_squares(shape: tuple[int, ...]) -> bool:
    return _stack(shape) and shape[1] == shape[2]


# Two values: the condition on the second, that on the first given the second's shape, and the step.
BINARY: dict[str, tuple[Callable[[Any], bool], Callable[[Any], Any], Callable[..., Any]]] = {
    "add": (bool, lambda s: lambda t: t == s, jnp.add),
    "sub": (bool, lambda s: lambda t: t == s, jnp.subtract),
    "mul": (bool, lambda s: lambda t: t == s, jnp.multiply),
    "larger": (bool, lambda s: lambda t: t == s, jnp.maximum),
    "where": (bool, lambda s: lambda t: t == s, lambda v, w: jnp.where(v > DECIDING, v, w)),
    "either": (bool, lambda s: lambda t: t == s, lambda v, w: lax.cond(v.sum() > DECIDING, lambda: v, lambda: w)),
    "beside": (bool, lambda s: lambda t: t == s, lambda v, w: jnp.concatenate([v, w], -1)),
    "stacked": (bool, lambda s: lambda t: t == s, lambda v, w: jnp.stack([v, w], 1)),
    "plus a row": (_matrix, lambda s: lambda t: t == s[1:], lambda v, w: w + v),
    "times a row": (_matrix, lambda s: lambda t: t == s[1:], lambda v, w: w * v),
    "times a column": (_matrix, lambda s: lambda t: t == s[:1], lambda v, w: w * v[:, None]),
    "matmul": (_matrix, lambda s: _has_end(s[0]), jnp.matmul),
    "matmul, transposed": (_matrix, lambda s: _has_end(s[1]), lambda v, w: v @ w.T),
    "gram": (_matrix, lambda s: lambda t: t == s, lambda v, w: v.T @ w),
    "over the first axes": (bool, lambda s: lambda t: bool(t) and t[0] == s[0], lambda v, w: _contract(v, w, (0, 0))),
    "outer": (bool, lambda s: lambda t: len(t) == 1, lambda v, w: jnp.tensordot(w, v, 0)),
    "batched": (_stack, lambda s: lambda t: t == s[:2], lambda v, w: jnp.einsum("ij,ijk->ik", v, w)),
    "by vmap": (_stack, lambda s: lambda t: t == s[:2], jax.vmap(jnp.dot)),
    "shared by vmap": (_matrix, lambda s: _has_end(s[0]), lambda v, w: jnp.apply_along_axis(lambda r: r @ w, -1, v)),
    "row by row": (_matrix, lambda s: lambda t: len(t) > 1 and t[-1] == s[0], lambda v, w: lax.map(lambda r: r @ w, v)),
    "summed by hand": (_matrix, lambda s: _has_end(s[0]), lambda v, w: (v[..., None] * w).sum(-2)),
    "all of both": (bool, lambda s: lambda t: t == s, jnp.vdot),
    "convolved": (_stack, lambda s: lambda t: int(np.prod(t)) >= s[1], _convolved),
    "by group": (_stack, lambda s: lambda t: _matrix(t) and t[1] == s[1], _grouped),
    "layers": (_stack_of_squares, lambda s: _has_end(s[1]), _layers),
    "recurrent": (_square, lambda s: _has_end(s[0]), _recurrent),
    "until": (_square, lambda s: _has_end(s[0]), _until),
    "looked up": (bool, bool, lambda v, w: w[jnp.argsort(jnp.round(v.reshape(-1), 6))[:2] % w.shape[0]]),
    "put into": (_matrix, lambda s: _has_end(s[1]), lambda v, w: w.at[0].set(v.reshape(-1, w.shape[1])[0])),
    "added into": (_matrix, lambda s: lambda t: t == s, lambda v, w: w.at[np.arange(w.shape[0]) // 2].add(v)),
    "updated at": (bool, lambda s: lambda t: len(t) == len(s), _updated),
}  # fmt: skip


def _binary(name: str) -> Maker:
    second, first, call = BINARY[name]

    def make(rng: Rng, shapes: list[tuple[int, ...]], pick: Callable[..., int]) -> Made:
        j = pick(second)
        return name, (pick(first(shapes[j])), j), call

    return make


# Products are what the engine is for: as likely as half of all else together.
MAKERS: list[Maker] = [*map(_unary, UNARY), *2 * [*map(_binary, BINARY)]]
