"""What the members of a generation are made of, whatever the strategy; and some of them, evaluated at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from eggroll.engine.annotations import Chunk, Function, Index, PyTree, Scalar
from eggroll.strategy.evaluate.chunking import Arrangement
from eggroll.strategy.evaluate.compiled import CompiledCache
from eggroll.strategy.evaluate.loops import Evaluation
from eggroll.strategy.evaluate.planning import check_covered
from eggroll.strategy.evaluate.tracing import Rows
from eggroll.strategy.noise.sampler import Sampler
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.population import Population


@dataclass(frozen=True)
class Draw(ABC):
    """What the members of one generation are made of: a subclass says how they are evaluated.

    Attributes:
        strategy: name of the class that draws them, for messages.
        settings: who the members are.
        key: typed threefry key of the generation's noise.
        sigma: noise scale, a Python float or a traced scalar.
        cache: of compiled functions, the strategy's.
        one_at_a_time: whether a member's dense parameters are a copy, which is evaluated by itself.
    """

    strategy: str
    settings: Population
    key: jax.Array
    sigma: Scalar
    cache: CompiledCache
    one_at_a_time: ClassVar[bool] = False

    @abstractmethod
    def plan_for(self, params: PyTree, fun: Function | None = None, rows: Rows | None = None) -> Plan:
        """As `Strategy.plan_for`."""

    @abstractmethod
    def ready(self, plan: Plan, params: PyTree, fun: Function, rows: Rows, chunk: Chunk | None, held: Any) -> Function:
        """What makes of arguments like those of `rows`, whose other leaves are 0, the output of `fun` for each member.

        `held` is a dictionary for what is drawn once for all functions, or None.
        """

    def some(self, plan: Plan, params: PyTree, fun: Function, rows: Rows, who: np.ndarray) -> PyTree:
        """The output of `fun` for members `who`, all at once, of which each has a row of `rows`."""
        program, axes, settings = self.cache.program(fun, params, rows), rows.axes, self.settings
        signs, place = settings.signs, np.arange(len(who))
        whole = len(who) % signs == 0
        paired = whole and np.array_equal(who, who[place // signs * signs] // signs * signs + place % signs)

        def run(params: PyTree, args: tuple, key: jax.Array, sigma: Scalar, who: jax.Array) -> Any:
            rows = Rows(args, axes, len(who))
            check_covered(plan, program, params, rows)
            sampler = Sampler(plan, settings.distribution, settings.size)
            return Evaluation(settings, sampler, program, _kept, Arrangement(len(who))).some(
                params, rows, key, sigma, who, paired=paired
            )

        given = params, rows.arrays_alone().args, self.key, self.sigma, who
        return self.cache(run, ("some", program, plan, axes, paired), *given)

    @abstractmethod
    def member(self, plan: Plan, params: PyTree, i: Index) -> PyTree:
        """The dense parameters of member `i`."""

    @abstractmethod
    def gradient(self, plan: Plan, params: PyTree, weights: jax.Array) -> PyTree:
        """The descent direction for shaped fitness `weights [N]`, float32 or wider."""


def _kept(out: PyTree) -> tuple[PyTree, PyTree]:
    return out, ()
