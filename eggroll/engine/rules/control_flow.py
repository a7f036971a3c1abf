"""Calls are walked through; scan, while and cond are re-emitted through the public functions, factors as constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Function, Index, Jaxpr, JaxprEqn
from eggroll.engine.interpreter import Interpreter
from eggroll.engine.perturbed import Array, Factor, Perturbed
from eggroll.engine.rules.maps import mapped, shape_of, walked


def inline(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Evaluates the callee in place."""
    jaxpr = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return ctx.evaluate(jaxpr, args)


def remat(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Re-emitted through `jax.checkpoint`, so that derivatives through the base still rematerialise."""
    params = eqn.params

    def wrap(fun: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        return jax.checkpoint(fun, prevent_cse=params["prevent_cse"], policy=params["policy"])

    return _forwarding(ctx, params["jaxpr"], args, wrap)


def custom_derivative(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """The function itself is walked; its own derivative rule knows only dense weights, so differentiating raises."""
    name = eqn.primitive.name
    paths = sorted({t.source.path for a in args if isinstance(a, Perturbed) for t in a.terms})
    line = jax_compat.source_line(eqn)

    def refuse(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(
            f"got a derivative through `{name}` at {line}, entered by the perturbed parameter(s) {paths}: its custom "
            "rule is written for dense weights and would give a wrong derivative of the factored ones. "
            "Differentiate the function on dense parameters (members.materialize(i)), or take the custom rule away."
        )

    def wrap(fun: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        call = jax.custom_jvp(fun)
        call.defjvp(refuse)
        return call

    return _forwarding(ctx, eqn.params["call_jaxpr"], args, wrap)


def _forwarding(ctx: Interpreter, jaxpr: Jaxpr, args: Sequence[Any], wrap: Function) -> list[Any]:
    """Calls, but hands inputs that the callee returns unchanged straight on: loops look for identity."""
    handed_on: dict[int, int] = {}

    def body(*values: Any) -> list[Any]:
        ctx.hand_on(args, values)
        outs = ctx.evaluate(jaxpr, values)
        handed_on.update({j: i for j, out in enumerate(outs) for i, v in enumerate(values) if out is v})
        return outs

    outs = wrap(body)(*args)
    return [args[handed_on[j]] if j in handed_on else out for j, out in enumerate(outs)]


CARRY = "a loop carry that the body changes"
STACKED = "stacked output of a scan"


def scan(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Perturbed inputs travel as factors; a carry that the body hands on unchanged becomes a constant."""
    if (outs := mapped(ctx, eqn, args)) is not None:
        return outs
    n_consts, n_carry = jax_compat.scan_counts(eqn.params)
    jaxpr, consts = eqn.params["jaxpr"], args[:n_consts]
    init, xs = list(args[n_consts : n_consts + n_carry]), args[n_consts + n_carry :]

    def body(carry: Sequence[Any], slices: tuple[Any, Sequence[Any]]) -> tuple[list[Any], list[Any], list[Any]]:
        values = [sliced(x, part, slices[0]) for x, part in zip(xs, slices[1], strict=True)]
        ctx.hand_on(xs, values)
        ctx.note_own(*carry)
        outs = ctx.evaluate(jaxpr, [*consts, *carry, *values])
        return outs[:n_carry], outs[n_carry:], values

    parts = jnp.arange(eqn.params["length"]), [x.base if isinstance(x, Perturbed) else x for x in xs]
    first = jax.eval_shape(lambda p: jax.tree.map(lambda a: a[0], p), parts) if eqn.params["length"] else None
    fixed = {} if first is None else _invariant(ctx, init, lambda carry, part: body(carry, part)[0], first)
    forwarded: dict[int, int] = {}

    def step(carry: tuple, slices: Any) -> tuple[tuple, dict[int, Any]]:
        new, ys, values = body(_merge(carry, fixed, n_carry), slices)
        forwarded.update(_identical(ys, values))
        kept = {j: ctx.dense(y, eqn, STACKED, eqn.params["length"]) for j, y in enumerate(ys) if j not in forwarded}
        return tuple(ctx.dense(c, eqn, CARRY) for i, c in enumerate(new) if i not in fixed), kept

    moving = tuple(ctx.dense(c, eqn, CARRY) for i, c in enumerate(init) if i not in fixed)
    options = {k: eqn.params[k] for k in ("length", "reverse", "unroll")}
    last, ys = lax.scan(step, moving, parts, **options)
    n_ys = len(eqn.outvars) - n_carry
    return [*_merge(last, fixed, n_carry), *(xs[forwarded[j]] if j in forwarded else ys[j] for j in range(n_ys))]


def sliced(x: Any, part: Any, index: Index) -> Any:
    """The perturbed slice of a scanned input `x`, from the slice of its base."""
    if not isinstance(x, Perturbed):
        return part

    def change(f: Factor) -> Factor:
        # Of numbers that do not exist yet the keys are sliced.
        numbers = jax.tree.map(lambda a: _at(a, index), f.numbers) if 0 in f.axes else f.numbers
        return replace(f, numbers=numbers, axes=tuple(a - 1 for a in f.axes if a != 0))

    return walked(x).map(part, lambda t: t.map(change))


def _at(array: Any, index: Index) -> Any:
    # Scanned over, factors would be transposed to put the loop's axis before the members', in a loop around this one
    # (a decoder's) at every turn.
    if not array.shape[0]:  # a scan of no turns is traced all the same
        return lax.full(array.shape[1:], 0, array.dtype)
    return lax.dynamic_index_in_dim(array, index, keepdims=False)


def _identical(ys: Sequence[Any], values: Sequence[Any]) -> dict[int, int]:
    """Perturbed outputs that are perturbed inputs, untouched."""
    return {j: i for j, y in enumerate(ys) if isinstance(y, Perturbed) for i, value in enumerate(values) if y is value}


def _invariant(ctx: Interpreter, init: list[Any], body: Callable[..., list[Any]], *others: Any) -> dict[int, Perturbed]:
    """Perturbed carries that the body returns untouched, found by evaluating it abstractly until nothing changes.

    The body is given the carries and `others`, whose arrays may be shapes only.
    """
    fixed = {i: c for i, c in enumerate(init) if isinstance(c, Perturbed)}
    while fixed:
        changed: list[int] = []

        def attempt(carry: list[Any], *others: Any, fixed: Any = fixed, changed: Any = changed) -> None:
            outs = body(_merge(carry, fixed, len(init)), *others)
            changed += [i for i, c in fixed.items() if outs[i] is not c]

        moving = [shape_of(c) for i, c in enumerate(init) if i not in fixed]
        with ctx.silent():
            jax.eval_shape(attempt, moving, *others)
        if not changed:
            return fixed
        fixed = {i: c for i, c in fixed.items() if i not in changed}
    return fixed


def _merge(moving: Sequence[Any], fixed: dict[int, Any], n: int) -> list[Any]:
    """All `n` carries, from those that move and those that stay."""
    rest = iter(moving)
    return [fixed[i] if i in fixed else next(rest) for i in range(n)]


def while_loop(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Constants are captured; carries are treated as in scan."""
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = args[:n_cond], args[n_cond : n_cond + n_body]
    init = list(args[n_cond + n_body :])

    def body(carry: Sequence[Any]) -> list[Any]:
        ctx.note_own(*carry)
        return ctx.evaluate(eqn.params["body_jaxpr"], [*body_consts, *carry])

    fixed = _invariant(ctx, init, body)

    def proceed(carry: tuple) -> Any:
        everything = _merge(carry, fixed, len(init))
        ctx.note_own(*everything)
        return ctx.dense(ctx.evaluate(eqn.params["cond_jaxpr"], [*cond_consts, *everything])[0], eqn, CARRY)

    def step(carry: tuple) -> tuple:
        new = body(_merge(carry, fixed, len(init)))
        moved = tuple(ctx.dense(c, eqn, CARRY) for i, c in enumerate(new) if i not in fixed)
        return going(proceed(carry), moved, carry) if rows else moved

    moving, rows = tuple(ctx.dense(c, eqn, CARRY) for i, c in enumerate(init) if i not in fixed), by_row(eqn)
    last = lax.while_loop((lambda carry: proceed(carry).any()) if rows else proceed, step, moving)
    return _merge(last, fixed, len(init))


def by_row(eqn: JaxprEqn) -> bool:
    """Whether each row has a condition of its own, as `jax.vmap` makes it."""
    condition: Any = jax_compat.open_jaxpr(eqn.params["cond_jaxpr"])[0].outvars[0].aval
    return bool(condition.shape)


def going(goes: Array, new: Any, old: Any) -> Any:
    """What rows carry on: those that have ended keep what they ended with."""

    def kept(a: Array, b: Array) -> Array:
        return jnp.where(goes.reshape(*goes.shape, *[1] * (jnp.ndim(a) - goes.ndim)), a, b)

    return jax.tree.map(kept, new, old)


def cond(ctx: Interpreter, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Every branch is walked; an output stays factored where all branches factor it alike, or hand on one operand."""
    index, *operands = args
    index = ctx.dense(index, eqn, "a branch chosen by a perturbed value")
    branches, forwarded = eqn.params["branches"], []

    def attempt(branch: Jaxpr) -> Callable[..., list[Any]]:
        def call(*values: Any) -> list[Any]:
            ctx.hand_on(operands, values)
            outs = ctx.evaluate(branch, values)
            forwarded.append(set(_identical(outs, values).items()))
            return outs

        return call

    with ctx.silent():
        shapes = [jax.eval_shape(attempt(b), *operands) for b in branches]
    same = dict(set.intersection(*forwarded))
    alike = [len({_form(s) for s in outs}) == 1 for outs in zip(*shapes, strict=True)]

    def unified(branch: Jaxpr) -> Callable[..., list[Any]]:
        def call(*values: Any) -> list[Any]:
            ctx.hand_on(operands, values)
            outs = enumerate(ctx.evaluate(branch, values))
            reason = "branches return it in different forms"
            return [o if alike[j] else ctx.dense(o, eqn, reason) for j, o in outs if j not in same]

        return call

    chosen = iter(lax.switch(index, [unified(b) for b in branches], *operands))
    return [operands[same[j]] if j in same else next(chosen) for j in range(len(alike))]


def _form(value: Any) -> tuple[Any, ...]:
    """Structure and shapes: the factors of two perturbed values may own the same axes and differ in rank."""
    return (jax.tree.structure(value), *((a.shape, a.dtype) for a in jax.tree.leaves(value)))


RULES = {
    "jit": inline,
    "pjit": inline,
    "closed_call": inline,
    "call": inline,
    "core_call": inline,
    "eval_jaxpr": inline,  # JAX 0.12 has it in place of call and closed_call
    "remat": remat,
    "remat2": remat,
    "checkpoint": remat,
    "custom_jvp_call": custom_derivative,
    "custom_vjp_call": custom_derivative,
    "custom_vjp_call_jaxpr": custom_derivative,
    "scan": scan,
    "while": while_loop,
    "cond": cond,
}
