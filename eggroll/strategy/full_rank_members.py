"""The members of one generation of full-rank ES: dense parameters, one member's at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.checks import check_function
from eggroll.strategy.evaluate.inputs import InAxes, Rows, make_rows
from eggroll.strategy.full_rank_generation import FullRankGeneration
from eggroll.strategy.members import Members

if TYPE_CHECKING:
    from eggroll.strategy.full_rank import FullRankES


class FullRankMembers(Members):
    """A population of which one member's parameters exist at a time; see `Members`."""

    _es: FullRankES

    def _generation(self) -> FullRankGeneration:
        return FullRankGeneration(self._es.settings, self.plan, self._key, self._sigma)

    def apply(self, fun: Callable[..., Any], *args: Any, in_axes: InAxes = None, chunk: int | str | None = None) -> Any:
        """Evaluates `fun(params, *args)` for every member, one after the other.

        Args:
            fun: any function of dense parameters that `jax.jit` compiles.
            *args: further arguments; arrays are traced, other leaves reach `fun` as they are.
            in_axes: None (default: members share all arguments) or as in `jax.vmap`, for `args`: one row per member or
                per group.
            chunk: says nothing here, where there is always one member at a time.

        Returns:
            The output of `fun`, every leaf with a leading axis `population`.

        Raises:
            TypeError: no function.
            ValueError: rows that fit neither the population nor the groups; a sigma that is zero in a parameter's
                dtype.

        Example:
            >>> import jax, jax.numpy as jnp, eggroll
            >>> es = eggroll.FullRankES(population=4, sigma=0.1)
            >>> members = es.ask(es.init({"w": jnp.zeros((4, 3))}, jax.random.key(0)))
            >>> members.apply(lambda params, x: x @ params["w"], jnp.ones((5, 4))).shape
            (4, 5, 3)
        """
        check_function("fun", fun, "members.apply(fun, *args)")
        es, generation = self._es, self._generation()
        rows = make_rows(args, in_axes, es.population, es.groups)
        axes = rows.axes

        def run(params: Any, args: tuple, i: Any) -> Any:
            rows = Rows(args, axes, es.population)
            out = fun(params, *rows.merged([x[0] for x in rows.of_members(i, 1)]))
            return jax.tree.map(lambda x: jnp.expand_dims(x, 0), out)  # never the parameters' own memory

        outputs, buffers = [], generation.buffers(self.params)
        for i in range(len(self)):
            params, buffers = generation.member(self.params, i, buffers)
            outputs.append(es.cache(run, ("apply", fun, axes), params, args, np.int32(i)))
        return _joined(outputs)

    def materialize(self, i: Any) -> Any:
        """The dense parameters of member `i`: what `apply` evaluates, bit for bit.

        Args:
            i: member, 0 to `population − 1`; may be traced.

        Returns:
            A pytree as `params`.

        Raises:
            IndexError: there is no such member.
        """
        i = self._checked(i)
        generation = self._generation()
        return generation.member(self.params, i, generation.buffers(self.params))[0]

    def gradient(self, weights: jax.Array) -> Any:
        """The descent direction `−1/(N·σ)·Σ wᵢ·εᵢ` for shaped fitness `weights [N]`."""
        return self._generation().gradient(weights, self.params)


@jax.jit
def _joined(outputs: list[Any]) -> Any:
    return jax.tree.map(lambda *each: jnp.concatenate(each), *outputs)
