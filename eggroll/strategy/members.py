"""The members of one generation, as `ES.ask` returns them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import Chunk, Function, Index, Numbers, PyTree
from eggroll.engine.checks import as_index, check_function, is_traced
from eggroll.engine.paths import leaf_paths
from eggroll.strategy.evaluate.argnums import by_name
from eggroll.strategy.evaluate.compiled import CompiledCache
from eggroll.strategy.evaluate.draw import Draw
from eggroll.strategy.evaluate.tracing import InAxes, Rows, make_rows
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.population import Population
from eggroll.strategy.state import State
from eggroll.strategy.update.activations import Ran
from eggroll.strategy.update.fitness import as_float
from eggroll.strategy.update.written import Writes, reading

Evaluated = Callable[[int], tuple[Function, tuple, InAxes]]  # of a generation: a function, its arguments, their in_axes


class Members:
    """A population of perturbed parameters of which none exists until it is evaluated.

    Attributes:
        params: the parameters that all members share.
        generation: the generation's number.
    """

    def __init__(self, params: PyTree, generation: Index, draw: Draw) -> None:
        self.params = params
        self.generation = generation
        self._draw = draw
        self._plan: Plan | None = None
        self._ran: tuple[Function, Rows, PyTree] | None = None
        self._held: dict[Any, Any] | None = None

    def __len__(self) -> int:
        return self._draw.settings.size

    def __repr__(self) -> str:
        return f"Members(population={len(self)}, generation={self.generation})"

    def check_asked_from(self, draw: Draw, state: State) -> None:
        """Raises unless these are members of the state's generation, made of what `draw` makes them of."""
        if self._draw.cache is not draw.cache:  # another strategy's
            self._check_noise_of(draw)
        if self.params is not state.params:
            self._check_parameters_of(state)
        if is_traced(state.generation, self.generation, self._draw.key, draw.key):
            return
        if state.generation != self.generation:
            raise ValueError(
                f"got members of generation {int(self.generation)} for a state of generation {int(state.generation)}; "
                "ask again from the state that you tell."
            )
        if self._draw.key != draw.key:
            raise ValueError(
                "got members asked from a state with another key: their noise is not this state's; ask again from the "
                "state that you tell."
            )

    def _check_noise_of(self, draw: Draw) -> None:
        """Of another strategy the settings below decide the noise; rank and rules come with the members' plan."""
        if self._draw.strategy != draw.strategy:
            raise _not_asked(f"got members of an {self._draw.strategy} for an {draw.strategy}")
        for name in ("size", "antithetic", "distribution", "noise", "relative"):
            mine, other = getattr(self._draw.settings, name), getattr(draw.settings, name)
            if mine != other:
                raise _other_noise("population" if name == "size" else name, mine, other)
        mine, other = self._draw.sigma, draw.sigma
        if not is_traced(mine, other) and mine != other:
            raise _other_noise("sigma", float(mine), float(other))

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
        return self._draw.settings

    @property
    def one_at_a_time(self) -> bool:
        """Whether members are evaluated one after the other, each with a dense copy of the parameters."""
        return self._draw.one_at_a_time

    @property
    def plan(self) -> Plan:
        """How each parameter is perturbed: fixed by the first function that is applied, else by the shapes."""
        if self._plan is None:
            self._plan = self._draw.plan_for(self.params)
        return self._plan

    def plan_for(self, fun: Function, *args: Any, in_axes: InAxes = None, **kwargs: Any) -> Plan:
        """How each parameter is perturbed, as `apply` with these arguments decides it; nothing is evaluated."""
        return self._plan_of(*self._asked(fun, args, in_axes, kwargs))

    def _plan_of(self, fun: Function, rows: Rows) -> Plan:
        if self._plan is None or self._plan.sites:  # sites are a function's own
            self._plan = self._draw.plan_for(self.params, fun, rows)
        return self._plan

    def apply(
        self, fun: Function, *args: Any, in_axes: InAxes = None, chunk: Chunk | None = None, **kwargs: Any
    ) -> PyTree:
        """Evaluates `fun(params, *args, **kwargs)` for every member, in compiled chunks.

        Args:
            fun: any traceable function of the parameters.
            *args: further arguments; arrays are traced, other leaves reach `fun` as they are.
            in_axes: None (default: members share all arguments) or as in `jax.vmap`, for `args`: one row per member or
                per group.
            chunk: members evaluated at once on a device, or `"auto"`. Default None: that of the ES.
            **kwargs: arguments by name, which all members share.

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
        fun, rows = self._asked(fun, args, in_axes, kwargs)
        like = None if self._held is None else (fun, chunk, rows.shapes())
        if self._held is None or (ready := self._held.get(like)) is None:
            ready = self._draw.ready(self._plan_of(fun, rows), self.params, fun, rows, chunk, self._held)
            if self._held is not None:
                self._held[like] = ready
        outputs = ready(rows.arrays_alone().args)
        self._ran = fun, rows, outputs if isinstance(fun, Writes) else None
        return outputs

    def some(self, who: Any, fun: Function, *args: Any, in_axes: InAxes = None, **kwargs: Any) -> PyTree:
        """Evaluates `fun(params, *args, **kwargs)` for some members, all of them at once.

        Numbers are traced: other members of as many are evaluated by the same compiled function. `tell` takes what all
        members made; what these did is for the caller to put together.

        Args:
            who: `[n]` numbers of members, in any order, and again where they are asked again. Where they are whole
                antithetic pairs in order, `2i` and `2i + 1` in turn, members of a pair share their noise in memory;
                else each has its own.
            fun: see `apply`.
            *args: see `apply`.
            in_axes: as in `apply`, but with one row for each of `who`.
            **kwargs: see `apply`.

        Returns:
            The output of `fun`, every leaf with a leading axis `n`.

        Raises:
            IndexError: there is no such member.
            ValueError: members on a mesh, or under noise on activations, which are evaluated together; and see `apply`.

        Example:
            >>> import jax, jax.numpy as jnp, eggroll
            >>> es = eggroll.ES(population=8, sigma=0.1)
            >>> members = es.ask(es.init({"w": jnp.zeros((4, 3))}, jax.random.key(0)))
            >>> members.some([5, 0, 5], lambda params, x: x @ params["w"], jnp.ones((3, 4)), in_axes=0).shape
            (3, 3)
        """
        check_function("fun", fun, "members.some(who, fun, *args)")
        if self.settings.mesh is not None or self.settings.noise != "weights":
            what = "on a mesh" if self.settings.mesh is not None else 'with noise="activations"'
            raise ValueError(f"got some of the members {what}, which are evaluated together: use members.apply.")
        if np.ndim(who) != 1 or not len(who):
            raise ValueError(f"got {who!r:.80} as some members; a list of at least one number is required, as [0, 3].")
        numbers = np.array([self._checked(i) for i in np.asarray(who).tolist()], np.int32)
        fun, rows = self._asked(fun, args, in_axes, kwargs, len(numbers))
        return self._draw.some(self._plan_of(fun, rows), self.params, fun, rows, numbers)

    def hold(self) -> Self:
        """These members, which from now on keep the noise that they draw: for many calls of `apply`, on few rows each.

        Each call draws it anew otherwise, and looks whether its function is still what it was: now that is what it was
        at its first call. Noise takes the memory of rank·(m+n) numbers for every pair and layer m × n; full-rank
        members, and those on a mesh, keep none.

        Example:
            >>> import jax, jax.numpy as jnp, eggroll
            >>> es = eggroll.ES(population=8, sigma=0.1)
            >>> members = es.ask(es.init({"w": jnp.zeros((4, 3))}, jax.random.key(0))).hold()
            >>> act = lambda params, x: x @ params["w"]
            >>> [members.apply(act, jnp.full(4, step), in_axes=None).shape for step in (1.0, 2.0)]
            [(8, 3), (8, 3)]
        """
        self._held = {}
        return self

    def __getitem__(self, i: Any) -> Any:
        """The dense parameters of member `i`, counted from the end if it is negative; of a slice, a list of them."""
        if isinstance(i, slice):
            return [self.materialize(j) for j in range(*i.indices(len(self)))]
        if not is_traced(i) and -len(self) <= (i := as_index("member", i)) < 0:
            i += len(self)
        return self.materialize(i)

    def __iter__(self) -> Iterator[PyTree]:
        """The dense parameters of one member after the other."""
        return map(self.materialize, range(len(self)))

    def materialize(self, i: int | jax.Array) -> PyTree:
        """The dense parameters of member `i`, to inspect or ship; equal to what `apply` evaluates, up to rounding.

        Args:
            i: member, 0 to `population − 1`; may be traced.

        Returns:
            A pytree as `params`.

        Raises:
            IndexError: there is no such member.
        """
        if self.plan.sites:
            raise ValueError(
                'got members with noise="activations", which have no weights of their own: noise is on the outputs of '
                "layers, another at every row. members.apply evaluates them; the weights are es.ask(state).params."
            )
        return self._draw.member(self.plan, self.params, self._checked(i))

    def gradient(self, weights: Numbers) -> PyTree:
        """The descent direction `−1/(N·σ·√r)·Σ wᵢ·AᵢBᵢᵀ` for shaped fitness `weights [N]`, float32 or wider."""
        given = as_float(jnp.asarray(weights))
        if given.shape[:1] != (len(self),) or (given.ndim > 1 and not self.plan.sites):
            raise ValueError(f"got weights of shape {given.shape}; one per member, ({len(self)},), is required.")
        return self._draw.gradient(self.plan, self.params, given)

    def _asked(
        self, fun: Function, args: tuple, in_axes: InAxes, kwargs: dict[str, Any], some: int = 0
    ) -> tuple[Function, Rows]:
        fun, args, in_axes = by_name(fun, args, in_axes, kwargs)
        return fun, make_rows(args, in_axes, some or self.settings.size, some or self.settings.groups)

    def _checked(self, i: int | jax.Array) -> int | jax.Array:
        """A member's number, known to be one unless it is traced."""
        if is_traced(i):
            return i
        i = as_index("member", i)
        if not 0 <= i < len(self):
            raise IndexError(f"got member {i}; members are numbered 0 to {len(self) - 1}.")
        return i


def check_members(members: object) -> None:
    """Raises `TypeError` unless `members` is what `ES.ask` returns."""
    if not isinstance(members, Members):
        raise TypeError(
            f"got {type(members).__name__} as the members; what es.ask(state) returned is required: "
            "es.tell(state, members, fitness)."
        )


def applied_last(members: Members, plan: Plan, cache: CompiledCache) -> Ran:
    """The function that was applied to members last, and its other arguments."""
    assert members._ran is not None  # a plan that has sites is of a function
    fun, rows, outputs = members._ran
    if isinstance(fun, Writes):
        read = reading(cache, fun, plan, members.params, rows, outputs, members.settings.signs)
        return Ran(*read, told=True, wrote=fun.wrote)
    return Ran(cache.program(fun, members.params, rows), rows.arrays_alone(), told=True)


def _other_noise(name: str, mine: object, other: Any) -> ValueError:
    return _not_asked(f"got members of an ES with {name}={mine!r} for one with {name}={other!r}")


def _not_asked(got: str) -> ValueError:
    return ValueError(f"{got}: their noise is not what would be summed up. Tell the ES that you asked.")


def _layout(params: PyTree) -> dict[str, tuple[tuple[int, ...], str]]:
    leaves = zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    return {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}
