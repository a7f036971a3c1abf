"""`FullRankES`: the evolution strategy with a dense perturbation of every parameter, for small populations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.engine.checks import check_function, is_traced
from eggroll.strategy.es import ES, Metrics
from eggroll.strategy.evaluate.inputs import InAxes, Rows
from eggroll.strategy.evaluate.tracing import check_scalar_shape
from eggroll.strategy.full_rank_generation import FullRankGeneration
from eggroll.strategy.full_rank_members import FullRankMembers
from eggroll.strategy.members import Members, check_members
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.plan.dense import full_rank_plan
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.plan.parameters import as_arrays
from eggroll.strategy.plan.rules import Rules
from eggroll.strategy.schedules import Rate, check_rate, rate_at
from eggroll.strategy.state import State, check_state
from eggroll.strategy.update.fitness import as_float, check_fitness, raise_if_lost, summary
from eggroll.strategy.update.shaping import Shaping, shape_fitness


class FullRankES(ES):
    r"""Trains parameters by full-rank evolution: fitness in, new parameters out, no backpropagation.

    In every generation member `i` sees `θ + σ·εᵢ`, with normal noise of its own for every number. Its fitness
    (maximised) is shaped into a weight `zᵢ`, and `θ` becomes `θ + α·(1/N)·Σ zᵢ·εᵢ`: what `ES` does with a `DenseRule`
    for every parameter and `optax.sgd(α·σ)`, bit for bit the same noise.

    A member's parameters are made by name of key, path, member and element, one member and one parameter at a time, by
    adding to the base in float32, and never by taking the noise off again, which would drift. So memory is the model,
    one perturbed copy and some blocks of noise; in an update the model, the new one and the blocks. Half-precision
    parameters need no float32 copy: the update is rounded stochastically, which keeps small ones on average.

    Members are evaluated one after the other, by compiled calls of a function of dense parameters: any function, as
    nothing is traced by the engine. `step` does the same, and is no single compiled call.

    Args:
        population: number of members `N`, at least 2. Default 30.
        sigma: noise scale `σ` > 0 in the units of the weights, or an optax schedule over generations. Default 0.001.
        learning_rate: `α` > 0, or an optax schedule. Default None: `σ/2`.
        shaping: as in `ES`. Default `"zscore"`.
        antithetic: whether members `2i` and `2i + 1` share noise with opposite signs. Default False.
        distribution: `"normal"` (default) or `"rademacher"`.
        rules: `(pattern, rule)` pairs by path, `"frozen"` or `DenseRule`. Default: all parameters have noise.
        groups: as in `ES`. Default 1.
        noise_reuse: successive generations with the same noise. Default 1: fresh every generation.

    Raises:
        ValueError: settings that do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp, eggroll
        >>> es = eggroll.FullRankES(population=64, sigma=0.1, learning_rate=0.3)
        >>> state = es.init({"w": jnp.zeros(3)}, jax.random.key(0))
        >>> target = jnp.array([1.0, -1.0, 0.5])
        >>> for _ in range(40):
        ...     members = es.ask(state)
        ...     outputs = members.apply(lambda params: params["w"])
        ...     state, metrics = es.tell(state, members, -((outputs - target) ** 2).sum(-1))
        >>> bool(metrics["fitness_mean"] > -0.1)
        True

    References:
        X. Qiu et al., "Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning", arXiv 2509.24372.
    """

    method = "full-rank"

    def __init__(
        self,
        *,
        population: int = 30,
        sigma: float | Callable[[Any], Any] = 1e-3,
        learning_rate: Rate = None,
        shaping: Shaping = "zscore",
        antithetic: bool = False,
        distribution: str = "normal",
        rules: Rules = (),
        groups: int = 1,
        noise_reuse: int = 1,
    ) -> None:
        super().__init__(
            population=population,
            sigma=sigma,
            shaping=shaping,
            antithetic=antithetic,
            distribution=distribution,
            rules=rules,
            groups=groups,
            noise_reuse=noise_reuse,
            update="members",
        )
        self.rank = 0  # no factors
        self.learning_rate = check_rate(learning_rate)

    def init(self, params: Any, key: jax.Array) -> State:
        """A fresh state, without master copies or an optimizer's state.

        Args:
            params: pytree of floating-point arrays (others only under a `"frozen"` rule).
            key: a `jax.random` key, typed or legacy.

        Returns:
            The state of generation 0.

        Raises:
            TypeError: a parameter that is not floating point, an NNX module (split it), or a key that is none.
            ValueError: no parameters, rules that match nothing or are low-rank, or two paths with the same hash.
        """
        params = as_arrays(params)
        self.plan_for(params)
        return first_full_rank_state(params, as_threefry(key))

    def plan_for(self, params: Any, fun: Callable[..., Any] | None = None, rows: Rows | None = None) -> Plan:
        """The plan for these parameters, whatever the function."""
        return full_rank_plan(params, self.rules)

    def ask(self, state: State) -> FullRankMembers:
        """The members of the next generation; see `ES.ask`."""
        check_state(state)
        return FullRankMembers(self, state.params, state.generation, self._key(state), self._sigma(state))

    def tell(self, state: State, members: Members, fitness: Any) -> tuple[State, Metrics]:
        """Updates the parameters from the members' fitness; see `ES.tell` for arguments, metrics and errors."""
        check_state(state)
        check_members(members)
        _check_full_rank(members)
        members.check_asked_from(self, state, self._key(state), self._sigma(state))
        fitness = check_fitness(fitness, self.population)
        self.plan = plan = members.plan
        sigma = self._sigma(state)
        metrics = self.cache(self._shaped, "shaped", fitness, sigma)
        metrics["generation"] = state.generation
        raise_if_lost(metrics, self.population)
        some = (metrics["nonfinite"] < self.population) & (metrics["sigma"] > 0) if is_traced(metrics) else True
        sigma = sigma if is_traced(sigma) else float(sigma)
        generation = FullRankGeneration(self.settings, plan, self._key(state), sigma)
        rate = rate_at(self.learning_rate, sigma, state.generation)
        state, norms = generation.moved(state, metrics["weights"], rate, some)
        return state, {**metrics, **norms}

    def step(
        self,
        state: State,
        fitness_fn: Callable[..., Any],
        *args: Any,
        in_axes: InAxes = None,
        has_aux: bool = False,
    ) -> tuple[State, Metrics]:
        """Ask, apply and tell, member after member; see `ES.step` for arguments, metrics and errors."""
        check_state(state)
        check_function("fitness_fn", fitness_fn, "es.step(state, fitness_fn, *args)")
        members = self.ask(state)
        outputs = members.apply(fitness_fn, *args, in_axes=in_axes)
        check_scalar_shape(jax.tree.map(_of_one, outputs), has_aux, "fitness")
        fitness, aux = outputs if has_aux else (outputs, ())
        fitness = as_float(fitness)
        state, metrics = self.tell(state, members, fitness)
        metrics["chunk"] = jnp.int32(1)
        return state, {**metrics, "aux": _averaged(aux, jnp.isfinite(fitness))} if has_aux else metrics

    def _shaped(self, fitness: jax.Array, sigma: Any) -> Metrics:
        weights, valid = shape_fitness(
            fitness, shaping=self.shaping, antithetic=self.settings.antithetic, groups=self.groups
        )
        metrics = summary(fitness, valid)
        return {**metrics, "fitness": fitness, "weights": weights, "sigma": as_float(jnp.asarray(sigma))}


def first_full_rank_state(params: Any, key: jax.Array) -> State:
    """The state of generation 0, of arrays and a typed threefry key."""
    return State(params, (), (), key, jnp.zeros((), jnp.int32))


def _of_one(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)


@jax.jit
def _averaged(aux: Any, finite: jax.Array) -> Any:
    """Floating-point leaves averaged over members with finite fitness, of others the first member's."""

    def one(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x[0]
        wide = as_float(x)
        mask = finite.reshape(-1, *[1] * (x.ndim - 1))
        return (jnp.where(mask, wide, 0).sum(0) / finite.sum().astype(wide.dtype)).astype(x.dtype)

    return jax.tree.map(one, aux)


def _check_full_rank(members: Members) -> None:
    if not isinstance(members, FullRankMembers):
        raise ValueError(
            f"got {type(members).__name__} of an eggroll.ES for an eggroll.FullRankES: their noise is not what would "
            "be summed up. Tell the ES that you asked."
        )
