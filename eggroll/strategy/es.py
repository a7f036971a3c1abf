"""`ES`: the evolution strategy as ask / apply / tell, and as one compiled step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from eggroll.engine.checks import check_function
from eggroll.engine.factored import abstract
from eggroll.engine.fallback import Fallback
from eggroll.strategy.evaluate.compiled import CompiledCache
from eggroll.strategy.evaluate.inputs import InAxes, Rows, make_rows
from eggroll.strategy.evaluate.tracing import check_covered, check_scalar, plan_for, split_aux, trace_member
from eggroll.strategy.generation import Generation, moved_if
from eggroll.strategy.members import Members, check_members
from eggroll.strategy.mesh.layout import layout
from eggroll.strategy.mesh.placement import for_mesh
from eggroll.strategy.mesh.sharding import Sharding, as_sharding
from eggroll.strategy.noise.keys import as_threefry, generation_key
from eggroll.strategy.plan.leaves import Plan, make_plan
from eggroll.strategy.plan.rules import Rules, as_rules, check_rank
from eggroll.strategy.population import Population
from eggroll.strategy.schedules import check_sigma, sigma_at
from eggroll.strategy.state import State, check_state
from eggroll.strategy.update.fitness import as_float, check_fitness, raise_if_lost, summary
from eggroll.strategy.update.initial import initial_state
from eggroll.strategy.update.optimizer import check_optimizer
from eggroll.strategy.update.shaping import Shaping, shape_fitness, validate_shaping

Metrics = dict[str, Any]


class ES:
    r"""Trains parameters by low-rank evolution: fitness in, optax updates out, no backpropagation.

    In every generation member `i` sees `W + σ·Aᵢ·Bᵢᵀ/√r`. Its fitness (maximised) is shaped into a weight `wᵢ`, and the
    optimizer receives `−1/(N·σ·√r)·Σ wᵢ·Aᵢ·Bᵢᵀ`.

    Args:
        population: number of members `N`, even with `antithetic`. Default 1024.
        sigma: noise scale `σ` > 0 in the units of the weights, or an optax schedule over generations. Default 0.05.
        rank: columns of each factor, at least 1. Default 1. A layer that is smaller gets dense noise.
        optimizer: an optax optimizer (its learning rate may be a schedule); one that watches the loss is given the
            negative mean fitness. Default `optax.adam(1e-2)`. Line searches need a function and are not supported:
            `optax.lbfgs(0.1, linesearch=None)` works, with a large `noise_reuse`, as it compares gradients.
        shaping: `"zscore"` (default), `"none"`, `"group"`, `"centered_rank"`, `"sign"`, or a callable `[N] -> [N]`.
        antithetic: members `2i` and `2i + 1` share noise with opposite signs. Default True.
        distribution: `"rademacher"` (±1, default) or `"normal"`.
        rules: `(pattern, rule)` pairs that decide by path how a parameter is perturbed; see `LowRankRule`.
        groups: number of equal groups of members, for arguments with a row per group and for `shaping="group"`.
            Default 1.
        noise_reuse: successive generations with the same noise. Default 1: fresh every generation.
        chunk: members evaluated at once, or `"auto"` (default). Never changes the noise.
        mesh: a mesh with an axis `"population"` over whose devices the members are split; all processes' devices where
            there are several.
        sharding: how parameters are split over other axes of the mesh: a pytree as the parameters of `PartitionSpec` or
            `NamedSharding`, or `(pattern, PartitionSpec)` pairs by path. Default None: whole on every device.
        update: on a mesh, whether devices sum up their `"members"` or their part of all `"weights"`; `"auto"` (default)
            takes members, or weights where that does not fit a device: see the attribute `update`.
        fallback: `"warn"` (default), `"allow"` or `"error"` where a weight has to be made dense.

    Raises:
        ValueError: settings that do not fit together.

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
        sigma: float | Callable[[Any], Any] = 0.05,
        rank: int = 1,
        optimizer: optax.GradientTransformation | None = None,
        shaping: Shaping = "zscore",
        antithetic: bool = True,
        distribution: str = "rademacher",
        rules: Rules = (),
        groups: int = 1,
        noise_reuse: int = 1,
        chunk: int | str = "auto",
        mesh: Mesh | None = None,
        sharding: Sharding = None,
        update: str = "auto",
        fallback: Fallback = "warn",
    ) -> None:
        members = population, antithetic, distribution, groups, chunk, mesh, fallback
        self.settings = Population(*members, as_sharding(sharding, mesh), update)
        check_sigma(sigma)
        validate_shaping(shaping)
        generation_key(jax.random.key(0), 0, noise_reuse)  # checks noise_reuse
        self.population, self.groups = self.settings.size, self.settings.groups
        self.sigma, self.rank, self.rules, self.shaping = sigma, check_rank(rank), as_rules(rules), shaping
        self.noise_reuse = noise_reuse
        self.optimizer = check_optimizer(optax.adam(1e-2) if optimizer is None else optimizer)
        self.cache = CompiledCache()
        self._plans: dict[Any, Plan] = {}
        self.plan: Plan | None = None  # of the last generation that was told

    def init(self, params: Any, key: jax.Array) -> State:
        """A fresh state.

        Args:
            params: pytree of floating-point arrays (others only under a `"frozen"` rule).
            key: a `jax.random` key, typed or legacy.

        Returns:
            The state of generation 0.

        Raises:
            TypeError: a parameter that is not floating point, an NNX module (split it), a key that is none, or an
                optimizer that needs more than gradient, parameters and loss.
            ValueError: no parameters, rules that match nothing, or two paths with the same hash.
        """
        self._choose_update(params)
        return initial_state(params, key, self.optimizer, self.rules, self.settings)

    def plan_for(self, params: Any, fun: Callable[..., Any] | None = None, rows: Rows | None = None) -> Plan:
        """The plan for parameters of these shapes; the first function seen decides it, for all later generations.

        Without a function, a plan by shapes alone, which later generations do not inherit.
        """
        leaves, tree = jax.tree.flatten(params)
        key = (tree, tuple((tuple(x.shape), str(x.dtype)) for x in leaves))
        if key not in self._plans:
            if fun is None or rows is None:
                return make_plan(params, None, rank=self.rank, rules=self.rules)
            shapes = jax.tree.map(abstract, params)
            program = trace_member(fun, shapes, rows)
            options = {"rank": self.rank, "rules": self.rules, "distribution": self.settings.distribution}
            self._choose_update(shapes)
            self._plans[key] = for_mesh(plan_for(program, shapes, rows, **options), self.settings)
        return self._plans[key]

    def _choose_update(self, params: Any) -> None:
        if self.settings.update == "auto":
            self.settings = replace(self.settings, update=layout(self.settings, params, self.optimizer))

    @property
    def update(self) -> str:
        """The layout of the update on a mesh: `"members"`, `"weights"`, or `"auto"` before parameters were seen."""
        return self.settings.update

    def ask(self, state: State) -> Members:
        """The members of the next generation; nothing dense is built.

        Args:
            state: the current state.

        Returns:
            Members to `apply` a function to, or to `materialize` one by one.

        Raises:
            TypeError: no `State`.
        """
        check_state(state)
        return Members(self, state.params, state.generation, self._key(state), self._sigma(state))

    def tell(self, state: State, members: Members, fitness: Any) -> tuple[State, Metrics]:
        """Updates the parameters from the members' fitness.

        Args:
            state: the state that `members` were asked from.
            members: from `ask`; they decide the plan (rank and rules).
            fitness: `[N]` real numbers, maximised; JAX, numpy or a list. A member whose fitness is not finite is
                dropped with its pair, and counted.

        Returns:
            `(state, metrics)`. Metrics: `fitness_mean`, `fitness_best`, `fitness_worst`, `fitness_std` (over finite
            fitness), `nonfinite` (members dropped), `gradient_norm`, `update_norm`, `sigma`, `generation`; and `[N]`
            each, `fitness` and what shaping made of it, `weights`.

        Raises:
            TypeError: no `State`, no `Members`, or fitness that is not real numbers.
            ValueError: fitness of another shape than `[N]` or deleted, members of another generation or run or with
                other noise than this ES draws, or a sigma schedule that is not > 0.
            FloatingPointError: no fitness is finite; the state is unchanged. Under `jit` nothing can be raised: the
                state then stays as it is.
        """
        check_state(state)
        check_members(members)
        members.check_asked_from(self, state, self._key(state), self._sigma(state))
        fitness = check_fitness(fitness, self.population)
        self.plan = plan = members.plan
        state, metrics = self.cache(
            lambda state, fitness: self._update(self._generation(plan, state), state, fitness),
            ("tell", plan),
            state,
            fitness,
        )
        raise_if_lost(metrics, self.population)
        return state, metrics

    def step(
        self,
        state: State,
        fitness_fn: Callable[..., Any],
        *args: Any,
        in_axes: InAxes = None,
        has_aux: bool = False,
    ) -> tuple[State, Metrics]:
        """Ask, apply and tell in one compiled call.

        Pass the same `fitness_fn` object at every call: a new one is compiled anew.

        Args:
            state: the current state.
            fitness_fn: `fitness_fn(params, *args)` → scalar fitness (maximised), or `(fitness, aux)` with `has_aux`.
            *args: further arguments; arrays are traced, other leaves reach `fitness_fn` as they are, so a number that
                changes in every generation should be an array.
            in_axes: None (default: members share all arguments) or as in `jax.vmap`, for `args`: one row per member or
                per group.
            has_aux: whether `fitness_fn` returns auxiliary output; floating-point leaves are averaged over members with
                finite fitness, others are the first member's.

        Returns:
            `(state, metrics)` as `tell`; also `metrics["chunk"]`, the members evaluated at once, and `metrics["aux"]`
            with `has_aux`.

        Raises:
            TypeError: no `State`, or no function.
            ValueError: a fitness that is not scalar, rows that fit neither population nor groups, or parameters that
                the first function of this ES did not use.
            FloatingPointError: as `tell`.
        """
        check_state(state)
        check_function("fitness_fn", fitness_fn, "es.step(state, fitness_fn, *args)")
        rows = make_rows(args, in_axes, self.population, self.groups)
        self.plan = plan = self.plan_for(state.params, fitness_fn, rows)
        axes = rows.axes

        def run(state: State, args: tuple) -> tuple[State, Metrics]:
            rows = Rows(args, axes, self.population)
            program = trace_member(fitness_fn, state.params, rows)
            check_scalar(program, has_aux, "fitness")
            check_covered(plan, program, state.params, rows)
            generation = self._generation(plan, state)
            arrangement = generation.arrangement(program, state.params, rows)
            words = generation.words()
            fitness, aux = generation.evaluate(program, state.params, rows, split_aux(has_aux), arrangement, words)
            state, metrics = self._update(generation, state, as_float(fitness), words)
            metrics["chunk"] = jnp.int32(arrangement.units * self.settings.signs)
            return state, {**metrics, "aux": aux} if has_aux else metrics

        state, metrics = self.cache(run, ("step", fitness_fn, plan, axes, has_aux), state, args)
        raise_if_lost(metrics, self.population)
        return state, metrics

    def _generation(self, plan: Plan, state: State) -> Generation:
        return Generation(self.settings, plan, self._key(state), self._sigma(state))

    def _update(
        self, generation: Generation, state: State, fitness: jax.Array, words: jax.Array | None = None
    ) -> tuple[State, Metrics]:
        fitness = generation.on_every_device(fitness)  # all that crosses the mesh before the sums
        shaped = shape_fitness(fitness, shaping=self.shaping, antithetic=self.settings.antithetic, groups=self.groups)
        weights, valid = shaped
        metrics = summary(fitness, valid)
        some = (metrics["nonfinite"] < self.population) & (generation.sigma > 0)
        new, norms = moved_if(some, self.optimizer, generation, state, weights, words, -metrics["fitness_mean"])
        sigma = as_float(jnp.asarray(generation.sigma))
        whole = {"fitness": fitness, "weights": weights, "sigma": sigma, "generation": state.generation}
        return new, generation.on_every_device({**metrics, **norms, **whole})

    def _key(self, state: State) -> jax.Array:
        return generation_key(as_threefry(state.key), state.generation, self.noise_reuse)

    def _sigma(self, state: State) -> Any:
        return sigma_at(self.sigma, state.generation)
