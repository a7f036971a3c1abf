"""The members of one generation, as `ES.ask` returns them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax

from eggroll.engine.checks import check_function, is_traced
from eggroll.engine.lowrank import LowRank, is_low_rank
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.evaluate.inputs import InAxes, Rows, make_rows
from eggroll.strategy.evaluate.tracing import check_covered, trace_member
from eggroll.strategy.generation import Generation
from eggroll.strategy.plan.leaves import Plan

if TYPE_CHECKING:
    from eggroll.strategy.es import ES, State
    from eggroll.strategy.population import Population


class Members:
    """A population of perturbed parameters of which none exists until it is evaluated.

    Attributes:
        params: the parameters that all members share.
        generation: the generation's number.
    """

    def __init__(self, es: ES, params: Any, generation: Any, key: jax.Array, sigma: Any) -> None:
        self.params = params
        self.generation = generation
        self._es = es
        self._key = key
        self._sigma = sigma
        self._plan: Plan | None = None

    def __len__(self) -> int:
        return self._es.population

    def __repr__(self) -> str:
        return f"Members(population={len(self)}, generation={self.generation})"

    def check_asked_from(self, es: ES, state: State, key: jax.Array, sigma: Any) -> None:
        """Raises unless these are members of the state's generation, as `es` draws them from `key` and `sigma`."""
        if self._es is not es:
            self._check_noise_of(es, sigma)
        if self.params is not state.params:
            self._check_parameters_of(state)
        if is_traced(state.generation, self.generation, self._key, key):
            return
        if state.generation != self.generation:
            raise ValueError(
                f"got members of generation {int(self.generation)} for a state of generation {int(state.generation)}; "
                "ask again from the state that you tell."
            )
        if self._key != key:
            raise ValueError(
                "got members asked from a state with another key: their noise is not this state's; ask again from the "
                "state that you tell."
            )

    def _check_noise_of(self, es: ES, sigma: Any) -> None:
        """Another ES, of whose settings those below decide the noise; rank and rules come with the members' plan."""
        for name in ("size", "antithetic", "distribution"):
            mine, other = getattr(self._es.settings, name), getattr(es.settings, name)
            if mine != other:
                raise _other_noise("population" if name == "size" else name, mine, other)
        if not is_traced(self._sigma, sigma) and self._sigma != sigma:
            raise _other_noise("sigma", float(self._sigma), float(sigma))

    def _check_parameters_of(self, state: State) -> None:
        mine, other = _layout(self.params), _layout(state.params)
        if mine != other:
            names = sorted(dict(mine.items() ^ other.items()))
            raise ValueError(
                f"got members of other parameters than the state's: they differ in {', '.join(map(repr, names[:5]))} "
                "by name, shape or dtype. Ask from the state that you tell."
            )

    @property
    def settings(self) -> Population:
        """Who the members are, as their ES was told."""
        return self._es.settings

    @property
    def plan(self) -> Plan:
        """How each parameter is perturbed: fixed by the first function that is applied, else by the shapes."""
        if self._plan is None:
            self._plan = self._es.plan_for(self.params)
        return self._plan

    def plan_for(self, fun: Callable[..., Any], *args: Any, in_axes: InAxes = None) -> Plan:
        """How each parameter is perturbed, as `apply` with these arguments decides it; nothing is evaluated."""
        if self._plan is None:
            rows = make_rows(args, in_axes, self._es.population, self._es.groups)
            self._plan = self._es.plan_for(self.params, fun, rows)
        return self._plan

    def apply(self, fun: Callable[..., Any], *args: Any, in_axes: InAxes = None, chunk: int | str | None = None) -> Any:
        """Evaluates `fun(params, *args)` for every member, in compiled chunks.

        Args:
            fun: any traceable function of the parameters.
            *args: further arguments; arrays are traced, other leaves reach `fun` as they are.
            in_axes: None (default: members share all arguments) or as in `jax.vmap`, for `args`: one row per member or
                per group.
            chunk: members evaluated at once on a device, or `"auto"`. Default None: the chunk of the ES.

        Returns:
            The output of `fun`, every leaf with a leading axis `population`.

        Raises:
            TypeError: no function.
            ValueError: rows that fit neither the population nor the groups; parameters that `fun` does not use; a
                parameter that the first function of this ES did not use; a sigma that is zero in a parameter's dtype.

        Example:
            >>> import jax, jax.numpy as jnp, optax, eggroll
            >>> es = eggroll.ES(population=8, sigma=0.1, optimizer=optax.sgd(0.1))
            >>> members = es.ask(es.init({"w": jnp.zeros((4, 3))}, jax.random.key(0)))
            >>> members.apply(lambda params, x: x @ params["w"], jnp.ones((5, 4))).shape
            (8, 5, 3)
        """
        check_function("fun", fun, "members.apply(fun, *args)")
        es = self._es
        plan, axes = self.plan_for(fun, *args, in_axes=in_axes), make_rows(args, in_axes, es.population, es.groups).axes
        settings = es.settings if chunk is None else replace(es.settings, chunk=chunk)

        def run(params: Any, args: tuple, key: jax.Array, sigma: Any) -> Any:
            rows = Rows(args, axes, es.population)
            program = trace_member(fun, params, rows)
            check_covered(plan, program, params, rows)
            generation = Generation(settings, plan, key, sigma)
            return generation.evaluate(program, params, rows, lambda out: (out, ()))[0]

        return es.cache(run, ("apply", fun, plan, axes, settings.chunk), self.params, args, self._key, self._sigma)

    def materialize(self, i: Any) -> Any:
        """The dense parameters of member `i`, to inspect or ship; equal to what `apply` evaluates, up to rounding.

        Args:
            i: member, 0 to `population − 1`; may be traced.

        Returns:
            A pytree as `params`.

        Raises:
            IndexError: there is no such member.
        """
        i = self._checked(i)
        settings, plan = self._es.settings, self.plan  # not self: what is compiled is kept, its parameters must not be

        def run(params: Any, i: Any, key: jax.Array, sigma: Any) -> Any:
            seen = Generation(settings, plan, key, sigma).member(params, i)
            return jax.tree.map(lambda x: x.dense() if isinstance(x, LowRank) else x, seen, is_leaf=is_low_rank)

        index = jax.numpy.asarray(i)
        return self._es.cache(run, ("materialize", plan), self.params, index, self._key, self._sigma)

    def _checked(self, i: Any) -> Any:
        """A member's number, known to be one unless it is traced."""
        if is_traced(i):
            return i
        i = operator.index(i)
        if not 0 <= i < len(self):
            raise IndexError(f"got member {i}; members are numbered 0 to {len(self) - 1}.")
        return i

    def gradient(self, weights: jax.Array) -> Any:
        """The descent direction `−1/(N·σ·√r)·Σ wᵢ·AᵢBᵢᵀ` for shaped fitness `weights [N]`, float32 or wider."""
        return Generation(self._es.settings, self.plan, self._key, self._sigma).gradient(weights, self.params)


def check_members(members: Any) -> None:
    """Raises `TypeError` unless `members` is what `ES.ask` returns."""
    if not isinstance(members, Members):
        raise TypeError(
            f"got {type(members).__name__} as the members; what es.ask(state) returned is required: "
            "es.tell(state, members, fitness)."
        )


def _other_noise(name: str, mine: Any, other: Any) -> ValueError:
    return ValueError(
        f"got members of an ES with {name}={mine!r} for one with {name}={other!r}: their noise is not what would be "
        "summed up. Tell the ES that you asked."
    )


def _layout(params: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    leaves = zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    return {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}
