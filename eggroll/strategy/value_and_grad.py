"""`value_and_grad` and `grad`: the drop-in for their namesakes in JAX."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Required, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from eggroll.engine.annotations import Chunk, Function, PyTree, Scalar
from eggroll.engine.checks import check_function, is_traced
from eggroll.engine.factored import Program
from eggroll.engine.interpreter import Fallback
from eggroll.strategy.es import ES
from eggroll.strategy.evaluate.argnums import (
    Grad,
    GradAux,
    ValueAndGrad,
    ValueAuxAndGrad,
    axes_after_shared,
    check_argnums,
    taken_out,
)
from eggroll.strategy.evaluate.compiled import CompiledCache, Recent, settings_key
from eggroll.strategy.evaluate.planning import plan_for
from eggroll.strategy.evaluate.tracing import InAxes, Rows, check_scalar, make_rows, split_aux
from eggroll.strategy.generation import Generation
from eggroll.strategy.noise.fixed import noise_key
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.plan.leaves import check_params
from eggroll.strategy.plan.rules import Rules, as_rules, check_rank
from eggroll.strategy.population import Population, Sharding
from eggroll.strategy.state import on_mesh
from eggroll.strategy.update.activations import Ran
from eggroll.strategy.update.automatic import AUTO, Auto
from eggroll.strategy.update.fitness import as_float, mean_loss, nothing_finite
from eggroll.strategy.update.optimizer import check_sigma
from eggroll.strategy.update.shaping import Shaping, shape_rows, validate_shaping


class CommonOptions(TypedDict, total=False):
    """Options of all functions here."""

    population: Required[int]
    sigma: Required[Scalar | Auto]
    rank: int
    antithetic: bool
    distribution: str
    shaping: Shaping
    rules: Rules
    chunk: Chunk
    mesh: Mesh | None
    sharding: Sharding
    in_axes: InAxes
    groups: int
    fallback: Fallback
    noise: Literal["weights", "activations"]
    credit: Literal["dependent", "own"]
    discount: float


class GradientOptions(CommonOptions, total=False):
    """Options of `eggroll.value_and_grad` and `eggroll.grad` but `has_aux`, which decides what they return."""

    argnums: int | Sequence[int]


@overload
def value_and_grad(
    loss_fn: Function, *, has_aux: Literal[False] = False, **options: Unpack[GradientOptions]
) -> ValueAndGrad: ...
@overload
def value_and_grad(
    loss_fn: Function, *, has_aux: Literal[True], **options: Unpack[GradientOptions]
) -> ValueAuxAndGrad: ...
def value_and_grad(
    loss_fn: Function,
    *,
    argnums: int | Sequence[int] = 0,
    population: int,
    sigma: Scalar | Auto,
    rank: int = 1,
    has_aux: bool = False,
    antithetic: bool = True,
    distribution: str = "rademacher",
    shaping: Shaping = "none",
    rules: Rules = (),
    chunk: Chunk = "auto",
    mesh: Mesh | None = None,
    sharding: Sharding = None,
    in_axes: InAxes = None,
    groups: int = 1,
    fallback: Fallback = "warn",
    noise: Literal["weights", "activations"] = "weights",
    credit: Literal["dependent", "own"] = "dependent",
    discount: float = 1.0,
) -> ValueAndGrad | ValueAuxAndGrad:
    r"""Estimates the value and the gradient of a loss from forward passes alone.

    Every member `i` sees `W + σ·Aᵢ·Bᵢᵀ/√r`; with fitness `f = −loss` and mean-centred weights `w` the gradient is
    `g = −1/(N·σ·√r)·Σ wᵢ·Aᵢ·Bᵢᵀ`. For `shaping="none"` it is an unbiased estimate of the gradient of the smoothed loss
    `E[loss(W + σE)]`, on the scale of `jax.grad`: a learning rate that suits backpropagation suits it.

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` → scalar loss, or `(loss, aux)` with `has_aux`. Arrays are traced;
            others (numbers, strings, None) reach it as they are: a number that changes should be an array.
            A function made anew is compiled anew only where something that it refers to, or a shape, is another.
        argnums: which positional argument is the parameters, or several, as in `jax.value_and_grad`. Default 0.
        population: number of members `N`, even with `antithetic`.
        sigma: noise scale `σ` > 0, in the units of the weights. A number is compiled in; let one that changes be an
            array, `jnp.asarray(x)`. `"auto"`: the first call, outside jit, chooses it for this function
            with parameters of these shapes, in this process; see `ES.choose`.
        rank: columns of each factor, at least 1. A layer that is smaller gets dense noise.
        has_aux: whether `loss_fn` returns auxiliary output; it is averaged over members, as in `ES.step`.
        antithetic: members `2i` and `2i + 1` share noise with opposite signs.
        distribution: `"rademacher"` (±1, default) or `"normal"`.
        shaping: `"none"` (default), `"zscore"`, `"group"`, `"centered_rank"`, `"sign"`, or a callable `[N] -> [N]`;
            all but `"none"` change the gradient's scale.
        rules: `(pattern, rule)` pairs, first match wins; see `LowRankRule`.
        chunk: members evaluated at once, or `"auto"`. Never changes the noise.
        mesh: a mesh with an axis `"population"` over whose devices the members are split.
        sharding: how parameters and gradient are split over its other axes, as in `ES`. Default None: not at all.
        in_axes: None (default: all members share the arguments) or as in `jax.vmap`, for the arguments but those that
            `argnums` names: one row per member or per group.
        groups: number of equal groups of members.
        fallback: `"warn"`, `"allow"` or `"error"` where a weight has to be made dense.
        noise: on the `"weights"` (default), or on `"activations"`, the outputs of the layers that they enter
            (`docs/activations.md`): `loss_fn` may then return an array of losses, one per row `[B]` or token `[B, T]`,
            in place of their mean.
        credit: then, `"dependent"` (default): noise is credited with all losses that depend on it; `"own"`: with that
            of the same row and token, which has less variance and a bias.
        discount: between the two: a factor from 0 to 1 on a loss for every token between it and the noise. Default 1.

    Returns:
        `f(params, *args, key, **kwargs) -> (value, grads)`, or `((value, aux), grads)` with `has_aux`. `value` is the
        mean loss of the members that have a finite one, `grads` is as `params`, zeros for frozen and unused parameters;
        a tuple of such where `argnums` is a sequence. Of a complex parameter `u + i·v` it is `du − i·dv`, as in
        `jax.grad`. `key` is a `jax.random` key: pass a new one at every step.

    Raises:
        ValueError: settings that do not fit together, a loss that is not scalar, rules that match nothing, a loss that
            does not use its parameters, a sigma that is zero in a parameter's dtype, an argument named twice.
        TypeError: no function, parameters of integers or the like, an NNX module, no key, or too few arguments.
        NotImplementedError: a derivative of the result, as by `jax.grad`.
        FloatingPointError: no member's loss is finite. Under `jit` the gradient is then zero and the value NaN.

    Example:
        >>> import jax, jax.numpy as jnp, eggroll
        >>> loss = lambda params, x, y: jnp.mean((x @ params["w"] - y) ** 2)
        >>> params = {"w": jnp.zeros((8, 4))}
        >>> f = eggroll.value_and_grad(loss, population=4096, sigma=0.1)
        >>> value, grads = f(params, jnp.ones((16, 8)), jnp.ones((16, 4)), key=jax.random.key(0))
        >>> exact = jax.grad(loss)(params, jnp.ones((16, 8)), jnp.ones((16, 4)))
        >>> bool(jnp.vdot(grads["w"], exact["w"]) > 0.9 * jnp.linalg.norm(grads["w"]) * jnp.linalg.norm(exact["w"]))
        True

    References:
        Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652, Section 4.
        Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", arXiv 1703.03864.
    """
    options = {name: x for name, x in locals().items() if name != "loss_fn"}
    check_function("loss_fn", loss_fn, "value_and_grad(loss_fn, ...)(params, *args, key=key)")
    who = population, antithetic, distribution, groups, chunk, mesh, fallback, sharding
    members = Population(*who, noise=noise, credit=credit, discount=discount)
    if callable(sigma):
        raise TypeError("got a schedule as sigma; value_and_grad takes a number, jnp.asarray(x) for each; or use ES.")
    check_sigma(sigma)
    validate_shaping(shaping)
    sigma = sigma if isinstance(sigma, jax.Array | str) else float(sigma)  # an array is an argument of what is compiled
    estimator = _Estimator(members, check_rank(rank), as_rules(rules), shaping, has_aux)
    numbers, own = check_argnums(argnums), CompiledCache()

    def value_and_grad_fun(*args: Any, key: jax.Array, **kwargs: Any) -> Any:
        as_threefry(key)
        params, others, put = taken_out(numbers, args)
        key = noise_key("value_and_grad", key, params=params, beside=(others, kwargs))
        params = on_mesh(params, members)
        if not all(jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(params)):
            check_params(params, rules)  # before it is traced: a flag among them would be an array in the function

        def loss(params: PyTree, kwargs: dict[str, Any], *others: Any) -> Any:
            return loss_fn(*put(params, others), **kwargs)

        setattr(loss, "__wrapped__", loss_fn)  # noqa: B010  whose name and line messages have
        rows = make_rows(others, in_axes, members.size, members.groups).after(kwargs)
        cache, group = _cache_for(own, estimator, numbers)
        fixed = None if isinstance(sigma, jax.Array | str) else sigma
        program = cache.program(loss, params, rows, (group, fixed), loss_fn, options)
        check_scalar(program.out_shape, has_aux, "loss", rows=members.noise == "activations")
        asked = loss, params, (kwargs, *others), axes_after_shared(in_axes, len(others)), key
        scale = _chosen((group, program), estimator, asked) if isinstance(sigma, str) else sigma
        rows = rows.arrays_alone()
        run = estimator.of(program, rows.axes)
        value, some, aux, grads = cache(run, (group, program, rows.axes), params, rows.args, key, scale)
        if not is_traced(some) and not some:
            raise nothing_finite("loss", members.size)
        return ((value, aux) if has_aux else value), grads

    return value_and_grad_fun


@dataclass(frozen=True)
class _Estimator:
    """What decides an estimate beside the function, its arguments and sigma."""

    members: Population
    rank: int
    rules: Any
    shaping: Shaping = field(compare=False)  # its description is compared
    has_aux: bool

    def sigma(self, loss: Function, params: PyTree, args: tuple, in_axes: InAxes, key: jax.Array) -> float:
        """The sigma that `ES` would choose."""
        if is_traced(params, args, key):
            raise ValueError(
                'got sigma="auto" under jit before anything has chosen it: call what value_and_grad returned once '
                "outside jit, which chooses for all later calls, or give sigma as a number."
            )
        es = ES(population=2, sigma=AUTO, rank=self.rank, rules=self.rules)
        es._take({"settings": self.members, "population": self.members.size, "groups": self.members.groups})

        def fitness(*all_args: Any) -> Any:
            return -(loss(*all_args)[0] if self.has_aux else loss(*all_args))

        es._choose_by(fitness, es.init(params, key), args, {}, in_axes, has_aux=False)
        return float(es.sigma)  # type: ignore[arg-type]

    def of(self, program: Program, axes: tuple) -> Function:
        """`(params, args, key, sigma)` → `(mean loss, whether there is one, aux, gradient)`."""
        members = self.members

        def estimate(params: PyTree, args: tuple, key: jax.Array, sigma: Any) -> tuple[PyTree, ...]:
            rows = Rows(args, axes, members.size)
            plan = plan_for(program, params, rows, members, self.rank, self.rules)
            generation = Generation(members, plan, key, sigma, Ran(program, rows))
            words = generation.words()
            losses, aux = generation.evaluate(program, params, rows, split_aux(self.has_aux), words=words)
            losses = generation.on_every_device(losses)
            fitness = -as_float(losses)
            pairs = {"antithetic": members.antithetic, "groups": members.groups}
            weights, valid = shape_rows(fitness, shaping=self.shaping, **pairs)
            direction = generation.gradient(weights, params, words)  # of which `jax.grad` returns the conjugate
            grads = jax.tree.map(lambda g, p: jnp.conj(g).astype(p.dtype), direction, params)
            some = valid.any()
            return jnp.where(some, mean_loss(fitness, losses.dtype), jnp.nan), some, aux, grads

        return estimate


_SIGMAS = Recent()  # chosen, by estimator and function


def _chosen(name: Hashable, estimator: _Estimator, asked: tuple) -> float:
    return _SIGMAS.used(name) or _SIGMAS.keep(name, estimator.sigma(*asked))


_CACHE = CompiledCache()  # of all: value_and_grad written inside a loop is the same in every turn


def _cache_for(own: CompiledCache, estimator: _Estimator, *settings: Any) -> tuple[CompiledCache, Hashable]:
    """The cache of all with these settings, and their name in it; one of its own where they cannot be compared."""
    shaping = settings_key(estimator.shaping, None, estimator.members.size)
    try:
        hash((estimator, settings))
    except TypeError:
        return own, shaping
    return _CACHE, (estimator, settings, shaping)


@overload
def grad(loss_fn: Function, *, has_aux: Literal[False] = False, **options: Unpack[GradientOptions]) -> Grad: ...
@overload
def grad(loss_fn: Function, *, has_aux: Literal[True], **options: Unpack[GradientOptions]) -> GradAux: ...
def grad(loss_fn: Function, **options: Any) -> Grad | GradAux:
    """Estimates the gradient of a loss from forward passes alone; `value_and_grad` without the value.

    Args:
        loss_fn: as in `value_and_grad`.
        **options: as in `value_and_grad`; `population` and `sigma` are required.

    Returns:
        `f(params, *args, key) -> grads`, or `(grads, aux)` with `has_aux`.

    Example:
        >>> import jax, jax.numpy as jnp, eggroll
        >>> f = eggroll.grad(lambda w: jnp.sum(w * jnp.arange(1.0, 4.0)), population=1024, sigma=0.1)
        >>> jnp.round(f(jnp.zeros(3), key=jax.random.key(0)))
        Array([1., 2., 3.], dtype=float32)
    """
    both = value_and_grad(loss_fn, **options)
    has_aux = options.get("has_aux", False)

    def grad_fun(*args: Any, key: jax.Array, **kwargs: Any) -> Any:
        value, grads = both(*args, key=key, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return grad_fun
