"""What a strategy is: how its members are drawn, and how their fitness moves the parameters.

`ES` and `FullRankES` are two. Another one is a class over `Strategy` with `init`, `first`, `plan_for`, `draw` and
`follow`, and a `Method` in `eggroll.strategy.methods.METHODS`: then it trains, saves, resumes, replays and fine-tunes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import Flag, Function, Numbers, PyTree, Scalar
from eggroll.engine.checks import check_function, is_traced
from eggroll.strategy.evaluate.argnums import by_name
from eggroll.strategy.evaluate.averages import averaged_output
from eggroll.strategy.evaluate.compiled import CompiledCache, settings_key, shared
from eggroll.strategy.evaluate.draw import Draw
from eggroll.strategy.evaluate.tracing import InAxes, Rows, check_scalar, make_rows
from eggroll.strategy.members import Evaluated, Members, check_members
from eggroll.strategy.noise.fixed import noise_key
from eggroll.strategy.noise.keys import as_threefry, generation_key
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.plan.rules import Rules, as_rules
from eggroll.strategy.population import Population
from eggroll.strategy.state import State, check_state
from eggroll.strategy.update.automatic import COMPILED, MEMBERS, Automatic
from eggroll.strategy.update.fitness import Standstill, as_float, of_members, raise_if_lost, summary
from eggroll.strategy.update.optimizer import Sigma, check_sigma, sigma_at
from eggroll.strategy.update.shaping import Shaping, shape_rows, validate_shaping
from eggroll.strategy.update.told import beyond, check_fitness, check_weights, float64_on_host, is_wide, narrowed

Metrics = dict[str, Any]
Norms = dict[str, jax.Array]  # "gradient_norm" and "update_norm"
FOUND = "plan", "standstill", *COMPILED  # of a strategy, beside its settings


class Strategy(Automatic, ABC):
    """An evolution strategy: ask / apply / tell, and `step`, the three in one.

    Args:
        settings: who the members are.
        sigma: noise scale, or an optax schedule over generations.
        shaping: see `ES`.
        rules: `(pattern, rule)` pairs by path.
        noise_reuse: successive generations with the same noise.

    Attributes:
        method: its name in ledgers and configurations, a key of `eggroll.strategy.methods.METHODS`.
        plan: of the last generation that was told; None before.

    """

    method: ClassVar[str]

    def __init__(self, settings: Population, *, sigma: Sigma, shaping: Shaping, rules: Rules, noise_reuse: int) -> None:
        check_sigma(sigma)
        validate_shaping(shaping)
        generation_key(as_threefry(jax.random.key(0)), 0, noise_reuse)  # checks noise_reuse
        self.settings, self.population, self.groups = settings, settings.size, settings.groups
        self.sigma: Sigma = sigma
        self.shaping, self.rules, self.noise_reuse = shaping, as_rules(rules), noise_reuse
        self.standstill = Standstill(settings.size)
        self.plan: Plan | None = None

    @cached_property
    def cache(self) -> CompiledCache:
        """Of compiled functions: that of all with the same settings, or its own on a mesh, where shapes decide."""

        def settings() -> tuple:
            return type(self), {name: x for name, x in vars(self).items() if name not in FOUND}

        who = self.settings
        told = None if self._is_trial else lambda: {**self.options(), "mesh": who.mesh, "fallback": who.fallback}
        return CompiledCache(options=told) if who.mesh is not None else shared(settings, told)

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name not in COMPILED}

    @abstractmethod
    def init(self, params: PyTree, key: jax.Array) -> State:
        """A fresh state of parameters and a key; what does not fit raises."""

    @abstractmethod
    def first(self, params: PyTree, plan: Plan, key: jax.Array) -> State:
        """The state of generation 0 for a plan that is known, of arrays and a typed threefry key, as `init` made it."""

    @abstractmethod
    def plan_for(self, params: PyTree, fun: Function | None = None, rows: Rows | None = None) -> Plan:
        """How each parameter is perturbed, for a function of the parameters where one is known."""

    @abstractmethod
    def draw(self, state: State) -> Draw:
        """What the members of the next generation are made of."""

    @abstractmethod
    def follow(
        self, plan: Plan, state: State, weights: jax.Array, *, loss: Scalar, sigma: Scalar, some: Flag = True
    ) -> tuple[State, Norms]:
        """The second half of a generation: the state after its update, and the norms of gradient and update.

        Args:
            plan: how each parameter is perturbed.
            state: before the update; its key and generation name the noise.
            weights: `[N]`, shaped fitness.
            loss: minus the mean fitness, for an optimizer that watches it.
            sigma: noise scale of this generation.
            some: False where there is nothing to follow, and the state is to stay as it is.
        """

    def options(self) -> dict[str, Any]:
        """Every setting that decides numbers, by its name in `__init__`: what runs compare and ledgers keep."""
        who = self.settings
        numbers = {"population": who.size, "sigma": self.sigma, "distribution": who.distribution}
        pairs = {"shaping": self.shaping, "antithetic": who.antithetic, "groups": who.groups}
        more = {"noise_reuse": int(self.noise_reuse), "chunk": who.chunk}  # sums over other parts round otherwise
        sites = {"noise": who.noise, "credit": who.credit, "discount": float(who.discount)}
        sites = (sites | ({"relative": True} if who.relative else {})) if who.noise != "weights" else {}
        return {**numbers, **pairs, **more, "rules": self.rules, **sites}

    def go_on(self, options: Mapping[str, Any]) -> None:
        """Takes over from the `options` that a run wrote down what was not to be chosen when it was begun."""

    def replayed(
        self, plan: Plan, sigma: float | None, evaluated: Evaluated | None = None
    ) -> Callable[..., tuple[State, Norms]]:
        """`(state, weights, loss, sigma) → (state, norms)` as `tell` updates, from numbers that a ledger recorded.

        Args:
            plan: the ledger's.
            sigma: of all generations; None: as recorded.
            evaluated: generation → what members were evaluated with: a function, its arguments and their `in_axes`.
        """

        def update(state: State, weights: Any, loss: Scalar, recorded: Scalar) -> tuple[State, Norms]:
            own = float(recorded) if sigma is None else sigma
            return self.follow(plan, state, jnp.asarray(weights), loss=loss, sigma=own)

        return update

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
        draw = self.draw(replace(state, key=noise_key("es.ask", state.key, state.generation, params=state.params)))
        return Members(state.params, state.generation, draw)

    def tell(self, state: State, members: Members, fitness: Numbers) -> tuple[State, Metrics]:
        """Updates the parameters from the members' fitness.

        Args:
            state: the one that `members` were asked from.
            members: from `ask`; they decide the plan (rank and rules).
            fitness: `[N]` real numbers, maximised; JAX, NumPy or a list. A member whose fitness is not finite is
                dropped with its pair, and counted. What the host gives is centred and scaled in float64 where float32
                does not hold it: a large offset costs nothing. In JAX's float32, 1e8 and 1e8 + 1 are equal already.

        Returns:
            `(state, metrics)`. Metrics: `fitness_mean`, `fitness_best`, `fitness_worst`, `fitness_std` (over finite
            fitness), `nonfinite` (members dropped), `equal_fitness` (of all others), `gradient_norm`, `update_norm`,
            `sigma`, `generation`; and `[N]` each, `fitness` and the `weights` that shaping made of it; float64, in
            NumPy, where float32 does not hold the fitness.

        Warns:
            UserWarning: once, when five generations in a row taught nothing, with the likely reasons.

        Raises:
            TypeError: no `State`, no `Members`, or fitness that is not real numbers.
            ValueError: fitness of another shape, deleted or beyond float64, members of another generation or run or
                with other noise, or a sigma schedule that is not > 0.
            FloatingPointError: no fitness is finite, or float32 does not hold the weights; the state is unchanged.
        """
        plan, scores = self._told(state, members, fitness)
        sigma = self._sigma(state)
        metrics = self._weighed(scores) if is_wide(scores) else self._weights_of(scores)
        metrics |= {"sigma": as_float(jnp.asarray(sigma)), "generation": state.generation}
        raise_if_lost(metrics, self.population)
        some = (metrics["nonfinite"] < self.population) & (metrics["sigma"] > 0) if is_traced(metrics) else True
        sigma = sigma if is_traced(sigma) else float(sigma)
        loss = -narrowed(metrics["fitness_mean"])
        state, norms = self.follow(plan, state, metrics["weights"], loss=loss, sigma=sigma, some=some)
        self.standstill.watch(metrics | norms)
        return state, metrics | norms

    def step(
        self,
        state: State,
        fitness_fn: Function,
        *args: Any,
        in_axes: InAxes = None,
        has_aux: bool = False,
        **kwargs: Any,
    ) -> tuple[State, Metrics]:
        """Ask, apply and tell.

        Args:
            state: the current state.
            fitness_fn: `fitness_fn(params, *args, **kwargs)` → scalar fitness (maximised), or `(fitness, aux)`.
            *args: further arguments; arrays are traced. A number that changes in every generation should be one.
            in_axes: None (default: members share `args`) or as in `jax.vmap`: one row per member or per group.
            **kwargs: arguments by name, which all members share.
            has_aux: whether `fitness_fn` returns auxiliary output; it is averaged over members with finite fitness.
                Integers and flags that come from nothing that differs among members stay exactly what they are; others
                come back as floating-point means: which, is decided when the function is traced.

        Returns:
            `(state, metrics)` as `tell`; also in `metrics` the `"chunk"` of members evaluated at once, and `"aux"`.

        Raises:
            TypeError, ValueError, FloatingPointError: as `tell`, no function, no scalar, or rows that do not fit.
        """
        check_state(state)
        check_function("fitness_fn", fitness_fn, "es.step(state, fitness_fn, *args)")
        self._choose_by(fitness_fn, state, args, kwargs, in_axes, has_aux)
        members = self.ask(state)
        fitness_fn, args, in_axes = by_name(fitness_fn, args, in_axes, kwargs)
        outputs = members.apply(fitness_fn, *args, in_axes=in_axes)
        of_one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), outputs)
        check_scalar(of_one, has_aux, "fitness")
        fitness = as_float(outputs[0] if has_aux else outputs)
        state, metrics = self.tell(state, members, fitness)
        metrics["chunk"] = jnp.int32(1 if members.one_at_a_time else self.population)
        if has_aux:
            rows, who = make_rows(args, in_axes, self.population, self.groups), (members.params, members.plan)
            metrics["aux"] = averaged_output(self.cache, fitness_fn, *who, rows, outputs[1], fitness)
        return state, metrics

    def _choose_by(
        self, fun: Function, state: State, args: tuple, kwargs: dict[str, Any], in_axes: InAxes, has_aux: bool
    ) -> None:
        """Chooses what is `"auto"` by a fitness function; with few members where none has a row of its own."""

        def evaluate(members: Members) -> jax.Array:
            called, given, axes = by_name(fun, args, in_axes, kwargs)  # names that `apply` has are the function's, too
            outputs = Members.apply(members, called, *given, in_axes=axes)
            return outputs[0] if has_aux else outputs

        if self.undecided:
            few = MEMBERS if in_axes is None and self.groups == 1 and self.settings.mesh is None else None
            self._choose(state, evaluate, few, Strategy.ask)

    def _told(self, state: State, members: Members, fitness: Any) -> tuple[Plan, Any]:
        """The plan of the members and their fitness, once both are known to belong to the state."""
        check_state(state)
        check_members(members)
        members.check_asked_from(self.draw(state), state)
        self.plan = members.plan
        return self.plan, check_fitness(fitness, self.population, rows=bool(self.plan.sites))

    def _noted(self, metrics: Metrics) -> Metrics:
        """The metrics of a generation, unless they tell that it is lost."""
        raise_if_lost(metrics, self.population)
        self.standstill.watch(metrics)
        return metrics

    def _weights_of(self, fitness: Any) -> Metrics:
        return self.cache(self._weigh, ("weigh", self._functions()), fitness)

    def _weigh(self, fitness: jax.Array) -> Metrics:
        """What fitness alone tells: its summary, and of every member `fitness` and `weights`."""
        pairs = self.settings.antithetic
        weights, valid = shape_rows(fitness, shaping=self.shaping, antithetic=pairs, groups=self.groups)
        return {**summary(fitness, valid), "fitness": of_members(fitness), "weights": weights}

    def _weighed(self, fitness: np.ndarray) -> Metrics:
        """The same of wide fitness, in NumPy: all in float64, but for the weights, which updates take in float32."""
        with float64_on_host():
            metrics = jax.device_get(self._weights_of(fitness))
            if beyond(metrics["weights"]):  # weights on the scale of the fitness: without the members that break it
                held = np.where(beyond(fitness, each=True), np.inf, fitness)
                metrics = {**jax.device_get(self._weights_of(held)), "fitness": fitness}
        check_weights(metrics, fitness)
        return {**metrics, "weights": narrowed(metrics["weights"])}

    def _functions(self) -> Hashable:  # what settings that may be functions compute
        return settings_key(self.shaping, self.sigma, self.population)

    def _key(self, state: State) -> jax.Array:
        return generation_key(as_threefry(state.key), state.generation, self.noise_reuse)

    def _sigma(self, state: State) -> Any:
        return sigma_at(self.sigma, state.generation)
