"""`ES`: low-rank noise, all members in one batched pass, updates by optax; every step one compiled call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from eggroll.engine.annotations import Chunk, Flag, Function, Numbers, PyTree, Scalar
from eggroll.engine.checks import check_function
from eggroll.engine.interpreter import Fallback
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.evaluate.argnums import ByName
from eggroll.strategy.evaluate.planning import Plans
from eggroll.strategy.evaluate.tracing import InAxes, Rows, check_scalar, make_rows, split_aux
from eggroll.strategy.generation import Generation, LowRankDraw, replayed_at_sites
from eggroll.strategy.members import Evaluated, Members, applied_last
from eggroll.strategy.noise.fixed import noise_key
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.plan.leaves import Plan, check_params
from eggroll.strategy.plan.rules import FrozenRule, Rules, Small, check_rank, check_small
from eggroll.strategy.population import Population, Sharding, layout
from eggroll.strategy.protocol import Metrics, Norms, Strategy
from eggroll.strategy.state import State, check_state, on_mesh
from eggroll.strategy.update.activations import Ran
from eggroll.strategy.update.fitness import as_float
from eggroll.strategy.update.optimizer import (
    Factory,
    Rate,
    Sigma,
    check_optimizer,
    check_rate,
    initial_state,
    optimizer_of,
)
from eggroll.strategy.update.shaping import Shaping
from eggroll.strategy.update.told import is_wide, narrowed

LOGGER = logging.getLogger("eggroll")


class ES(Strategy):
    r"""Trains parameters by low-rank evolution: fitness in, optax updates out, no backpropagation.

    In every generation member `i` sees `W + σ·Aᵢ·Bᵢᵀ/√r`. Its fitness (maximised) is shaped into a weight `wᵢ`, and the
    optimizer receives `−1/(N·σ·√r)·Σ wᵢ·Aᵢ·Bᵢᵀ`.

    Args:
        population: number of members `N`, even with `antithetic`. Default 1024.
        sigma: noise scale `σ` > 0 in the units of the weights, or an optax schedule over generations; or `"auto"`: the
            first `step` chooses it, see `choose`. Default 0.05.
        rank: columns of each factor, at least 1. Default 1. A layer that is smaller gets dense noise.
        optimizer: an optax optimizer (its learning rate may be a schedule); one that watches the loss is given the
            negative mean fitness. Default `optax.adam(1e-2)`. Line searches need a function and are not supported:
            `optax.lbfgs(0.1, linesearch=None)` works, with a large `noise_reuse`, as it compares gradients. With a
            `learning_rate`, what makes one of it: `optax.adam` (then the default), `lambda rate: optax.sgd(2 * rate)`.
        learning_rate: None (default): the optimizer's own. Or a number, a schedule, or `"auto"`: 0.4 of the sigma that
            `choose` finds, for optimizers whose updates are of the size of Adam's.
        shaping: `"zscore"` (default), `"none"`, `"group"`, `"centered_rank"`, `"sign"`, or a callable `[N] -> [N]`.
        antithetic: members `2i` and `2i + 1` share noise with opposite signs. Default True.
        distribution: `"rademacher"` (±1, default) or `"normal"`.
        rules: `(pattern, rule)` pairs, by path; see `LowRankRule`.
        small_layers: noise of layers whose factors would be no fewer numbers than the weight, rank·(m+n) ≥ m·n, unless
            a rule decides: `"dense"` (default), or `"low_rank"`, as in earlier versions.
        groups: number of equal groups of members, for arguments with a row per group and for `shaping="group"`.
            Default 1.
        noise_reuse: successive generations with the same noise. Default 1: fresh every generation.
        chunk: members evaluated at once, or `"auto"` (default). Never changes the noise.
        mesh: a mesh with an axis `"population"` over whose devices, of all processes, the members are split.
        sharding: how parameters are split over other axes of the mesh: a pytree as the parameters of `PartitionSpec` or
            `NamedSharding`, or `(pattern, PartitionSpec)` pairs by path. Default None: whole on every device.
        update: on a mesh, whether devices sum up their `"members"` or their part of all `"weights"`, which is what
            `"auto"` (default) takes where members do not fit a device.
        fallback: `"warn"` (default), `"allow"` or `"error"` where a weight has to be made dense.
        noise: on the `"weights"` (default), or on `"activations"`, the outputs of the layers that they enter: a fitness
            function may then return an array of fitness, one per row or token. See `eggroll.value_and_grad`.
        credit: of `noise="activations"`, see there; `"dependent"` (default) or `"own"`.
        discount: likewise, from 0 to 1. Default 1.
        relative: of `noise="activations"`: sigma is in units of each output's RMS over its last axis. Default False.

    Example:
        >>> import jax, jax.numpy as jnp, optax, eggroll
        >>> es = eggroll.ES(population=256, sigma=0.1, optimizer=optax.adam(0.1))
        >>> state = es.init({"w": jnp.zeros((4, 3))}, jax.random.key(0))
        >>> fitness = lambda params, x: -jnp.mean((x @ params["w"] - 1.0) ** 2)
        >>> for _ in range(50):
        ...     state, metrics = es.step(state, fitness, jnp.eye(4))
        >>> bool(metrics["fitness_mean"] > -0.1)
        True

    References:
        Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652.
    """

    method = "eggroll"

    def __init__(
        self,
        *,
        population: int = 1024,
        sigma: Sigma = 0.05,
        rank: int = 1,
        optimizer: optax.GradientTransformation | Factory | None = None,
        learning_rate: Rate = None,
        shaping: Shaping = "zscore",
        antithetic: bool = True,
        distribution: str = "rademacher",
        rules: Rules = (),
        small_layers: Small = "dense",
        groups: int = 1,
        noise_reuse: int = 1,
        chunk: Chunk = "auto",
        mesh: Mesh | None = None,
        sharding: Sharding = None,
        update: Literal["auto", "members", "weights"] = "auto",
        fallback: Fallback = "warn",
        noise: Literal["weights", "activations"] = "weights",
        credit: Literal["dependent", "own"] = "dependent",
        discount: float = 1.0,
        relative: bool = False,
    ) -> None:
        who = population, antithetic, distribution, groups, chunk, mesh, fallback, sharding, update
        settings = Population(*who, noise=noise, credit=credit, discount=discount, relative=relative)
        super().__init__(settings, sigma=sigma, shaping=shaping, rules=rules, noise_reuse=noise_reuse)
        self.rank = check_rank(rank)
        self.learning_rate: Rate = check_rate(learning_rate, "None for an optimizer that has its own")
        self.optimizer, self._optimizer_of = optimizer_of(optimizer, self.learning_rate)
        self.small_layers: Small = check_small(small_layers)

    def init(self, params: PyTree, key: jax.Array) -> State:
        """A fresh state.

        Args:
            params: pytree of floating-point or complex arrays (others only under a `"frozen"` rule).
            key: a `jax.random` key, typed or legacy.

        Returns:
            The state of generation 0.

        Raises:
            TypeError: a parameter of integers or the like, an NNX module (split it), a key that is none, or an
                optimizer that needs more than gradient, parameters and loss.
            ValueError: no parameters, rules that match nothing, or two paths with the same hash.
        """
        self._choose_update(params)
        params = on_mesh(params, self.settings)
        chosen = check_params(params, self.rules)
        frozen = [isinstance(chosen.get(path), FrozenRule) for path in leaf_paths(params)]
        return initial_state(params, frozen, self.optimizer, as_threefry(key), self.settings)

    def first(self, params: PyTree, plan: Plan, key: jax.Array) -> State:
        """See `Strategy.first`; on the mesh, if there is one."""
        frozen = [leaf.kind == "frozen" for leaf in plan.leaves]
        return initial_state(on_mesh(params, self.settings), frozen, self.optimizer, key, self.settings)

    def plan_for(self, params: PyTree, fun: Function | None = None, rows: Rows | None = None) -> Plan:
        """The plan for a function; without one that of the last, before the first a plan by shapes alone."""
        return self._plans.plan_for(params, fun, rows)

    def _choose_update(self, params: PyTree) -> None:
        if self.settings.update == "auto":
            self.settings = replace(self.settings, update=layout(self.settings, params, self.optimizer))

    @property
    def update(self) -> str:
        """The layout of the update on a mesh: `"members"`, `"weights"`, or `"auto"` before parameters were seen."""
        return self.settings.update

    @cached_property
    def _plans(self) -> Plans:
        return Plans(self.settings, self.rank, self.rules, self.cache, self.small_layers)

    def options(self) -> dict[str, Any]:
        """See `Strategy.options`; without what runs of earlier versions did not choose, where it is as then."""
        chosen: dict[str, Any] = {"small_layers": self.small_layers} if self.small_layers == "dense" else {}
        return {**super().options(), "rank": self.rank, "optimizer": self.optimizer, **chosen}

    def go_on(self, options: Mapping[str, Any]) -> None:
        """See `Strategy.go_on`."""
        if "small_layers" not in options and self.small_layers != "low_rank":
            vars(self)["small_layers"] = "low_rank"
            vars(self).pop("_plans", None)
            LOGGER.info("small_layers='low_rank', as in the run that goes on: it was begun by an earlier version")

    def _take(self, settings: Mapping[str, Any]) -> None:
        super()._take(settings)
        if (rate := settings.get("learning_rate")) is not None and self._optimizer_of is not None:
            vars(self)["optimizer"] = check_optimizer(self._optimizer_of(rate))

    def draw(self, state: State) -> LowRankDraw:
        """See `Strategy.draw`."""
        self._choose_update(state.params)
        made = "eggroll.ES", self.settings, self._key(state), self._sigma(state), self.cache
        return LowRankDraw(*made, self._plans)

    def follow(
        self, plan: Plan, state: State, weights: jax.Array, *, loss: Scalar, sigma: Scalar, some: Flag = True
    ) -> tuple[State, Norms]:
        """See `Strategy.follow`."""
        generation = Generation(self.settings, plan, self._key(state), sigma)
        return generation.moved_if(some, self.optimizer, state, weights, generation.words(), loss)

    def replayed(
        self, plan: Plan, sigma: float | None, evaluated: Evaluated | None = None
    ) -> Callable[..., tuple[State, Norms]]:
        """See `Strategy.replayed`; compiled once."""
        if plan.by_output:
            return replayed_at_sites(self.settings, self.optimizer, self._key, self.draw, plan, sigma, evaluated)

        # `some` is an argument, so that the branch stays a branch and is compiled as the run's.
        def update(state: State, weights: Any, loss: Scalar, recorded: Scalar, some: Flag) -> tuple[State, Norms]:
            return self.follow(plan, state, weights, loss=loss, sigma=recorded if sigma is None else sigma, some=some)

        compiled = jax.jit(update)
        return lambda state, weights, loss, recorded: compiled(state, weights, loss, recorded, np.True_)

    def tell(self, state: State, members: Members, fitness: Numbers) -> tuple[State, Metrics]:
        """See `Strategy.tell`; one compiled call."""
        plan, scores = self._told(state, members, fitness)
        wide = self._weighed(scores) if is_wide(scores) else {}
        given = {name: narrowed(wide[name]) for name in ("weights", "nonfinite", "fitness_mean")} if wide else scores
        ran = applied_last(members, plan, self.cache) if plan.sites else None
        axes, args = (ran.rows.axes, ran.rows.args) if ran else ((), ())
        what = ran and (ran.program, ran.wrote)

        def run(state: State, given: Any, args: tuple) -> tuple[State, Metrics]:
            generation = Generation(self.settings, plan, self._key(state), self._sigma(state))
            if what is not None:
                rows = Rows(args, axes, self.population)
                generation = replace(generation, ran=Ran(what[0], rows, True, what[1]))
            return self._moved(generation, state, given) if wide else self._update(generation, state, given)

        static = "tell", plan, bool(wide), what, axes, self._functions()
        state, metrics = self.cache(run, static, state, given, args)
        metrics |= wide
        return state, self._noted(metrics)

    def step(
        self,
        state: State,
        fitness_fn: Function,
        *args: Any,
        in_axes: InAxes = None,
        has_aux: bool = False,
        **kwargs: Any,
    ) -> tuple[State, Metrics]:
        """Ask, apply and tell in one compiled call; see `Strategy.step` for arguments, metrics and errors.

        A `fitness_fn` made anew by the same line, with the same captured values, is compiled once; each has its plan.
        """
        check_state(state)
        check_function("fitness_fn", fitness_fn, "es.step(state, fitness_fn, *args)")
        rows = make_rows(args, in_axes, self.population, self.groups)
        self._choose_by(fitness_fn, state, args, kwargs, in_axes, has_aux)
        key = noise_key("es.step", state.key, state.generation, params=state.params, beside=(args, kwargs))
        state = replace(state, key=key)
        self._choose_update(state.params)
        rows, fun = (rows.after(kwargs), ByName(fitness_fn)) if kwargs else (rows, fitness_fn)
        program = self.cache.program(fun, state.params, rows, own=fitness_fn if kwargs else None)
        check_scalar(program.out_shape, has_aux, "fitness", rows=self.settings.noise == "activations")
        self.plan = plan = self._plans.of(program, state.params, rows)
        axes = (rows := rows.arrays_alone()).axes

        def run(state: State, args: tuple) -> tuple[State, Metrics]:
            rows = Rows(args, axes, self.population)
            generation = Generation(self.settings, plan, self._key(state), self._sigma(state), Ran(program, rows))
            arrangement = generation.arrangement(program, state.params, rows)
            words = generation.words()
            fitness, aux = generation.evaluate(program, state.params, rows, split_aux(has_aux), arrangement, words)
            state, metrics = self._update(generation, state, as_float(fitness), words)
            metrics["chunk"] = jnp.int32(arrangement.units * self.settings.signs)
            return state, {**metrics, "aux": aux} if has_aux else metrics

        state, metrics = self.cache(run, ("step", program, plan, axes, has_aux, self._functions()), state, rows.args)
        return state, self._noted(metrics)

    def _update(
        self, generation: Generation, state: State, fitness: jax.Array, words: jax.Array | None = None
    ) -> tuple[State, Metrics]:
        fitness = generation.on_every_device(fitness)  # all that crosses the mesh before the sums
        return self._moved(generation, state, self._weigh(fitness), words)

    def _moved(
        self, generation: Generation, state: State, weighed: Metrics, words: jax.Array | None = None
    ) -> tuple[State, Metrics]:
        some = (weighed["nonfinite"] < self.population) & (generation.sigma > 0)
        loss = -weighed["fitness_mean"]
        new, norms = generation.moved_if(some, self.optimizer, state, weighed["weights"], words, loss)
        own = {"sigma": as_float(jnp.asarray(generation.sigma)), "generation": state.generation}
        return new, generation.on_every_device({**weighed, **norms, **own})
