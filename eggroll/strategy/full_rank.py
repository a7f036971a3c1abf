"""`FullRankES`: the evolution strategy with a dense perturbation of every parameter, for small populations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.engine.annotations import Flag, Function, PyTree, Scalar
from eggroll.strategy.evaluate.tracing import Rows
from eggroll.strategy.full_rank_generation import FullRankDraw, FullRankGeneration, full_rank_plan
from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.plan.parameters import as_arrays
from eggroll.strategy.plan.rules import Rules
from eggroll.strategy.population import Population
from eggroll.strategy.protocol import Norms, Strategy
from eggroll.strategy.state import State
from eggroll.strategy.update.optimizer import Rate, Sigma, check_rate, rate_at
from eggroll.strategy.update.shaping import Shaping


class FullRankES(Strategy):
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
        sigma: as in `ES`, `"auto"` too. Default 0.001.
        learning_rate: `α` > 0, or an optax schedule; or `"auto"`: `0.4·σ·√N`, of the sigma that `choose` finds, whose
            updates are as large as those of `ES`. Default None: `σ/2`.
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
        sigma: Sigma = 1e-3,
        learning_rate: Rate = None,
        shaping: Shaping = "zscore",
        antithetic: bool = False,
        distribution: str = "normal",
        rules: Rules = (),
        groups: int = 1,
        noise_reuse: int = 1,
    ) -> None:
        settings = Population(population, antithetic, distribution, groups)
        super().__init__(settings, sigma=sigma, shaping=shaping, rules=rules, noise_reuse=noise_reuse)
        self.learning_rate: Rate = check_rate(learning_rate)

    def init(self, params: PyTree, key: jax.Array) -> State:
        """A fresh state, without master copies or an optimizer's state.

        Args:
            params: pytree of floating-point or complex arrays (others only under a `"frozen"` rule).
            key: a `jax.random` key, typed or legacy.

        Returns:
            The state of generation 0.

        Raises:
            TypeError: a parameter of integers or the like, an NNX module (split it), or a key that is none.
            ValueError: no parameters, rules that match nothing or are low-rank, or two paths with the same hash.
        """
        params = as_arrays(params)
        return self.first(params, self.plan_for(params), as_threefry(key))

    def first(self, params: PyTree, plan: Plan, key: jax.Array) -> State:
        """See `Strategy.first`."""
        return State(params, (), (), key, jnp.zeros((), jnp.int32))

    def plan_for(self, params: PyTree, fun: Function | None = None, rows: Rows | None = None) -> Plan:
        """The plan for these parameters, whatever the function."""
        return full_rank_plan(params, self.rules)

    def options(self) -> dict[str, Any]:
        """See `Strategy.options`; no factors, and no optimizer."""
        more = {"rank": 0, "optimizer": None, "method": self.method, "learning_rate": self.learning_rate}
        return {**super().options(), **more}

    def _take(self, settings: Mapping[str, Any]) -> None:
        rate = settings.get("learning_rate")  # of the size of an update, which is this one's over √N
        own = {} if rate is None else {"learning_rate": rate * self.population**0.5}
        super()._take({**settings, **own})

    def draw(self, state: State) -> FullRankDraw:
        """See `Strategy.draw`."""
        made = self.settings, self._key(state), self._sigma(state), self.cache
        return FullRankDraw("eggroll.FullRankES", *made, self.rules)

    def follow(
        self, plan: Plan, state: State, weights: jax.Array, *, loss: Scalar, sigma: Scalar, some: Flag = True
    ) -> tuple[State, Norms]:
        """See `Strategy.follow`: by small compiled calls, parameter after parameter."""
        generation = FullRankGeneration(self.settings, plan, self._key(state), sigma)
        return generation.moved(state, weights, rate_at(self.learning_rate, sigma, state.generation), some)
