"""`ES` of a Flax NNX model: parameters move, and its other state goes along from generation to generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from eggroll.engine.annotations import Chunk, Function, Numbers, PyTree
from eggroll.engine.checks import check_function
from eggroll.engine.interpreter import Fallback
from eggroll.nnx.model import Call, Pure, Split, as_state, axes_of, kept_if
from eggroll.strategy import es as arrays
from eggroll.strategy.evaluate.averages import averaged, check_shared
from eggroll.strategy.evaluate.draw import Draw
from eggroll.strategy.evaluate.tracing import InAxes
from eggroll.strategy.members import Members, check_members
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.plan.rules import Rules, Small
from eggroll.strategy.population import Sharding
from eggroll.strategy.protocol import Metrics
from eggroll.strategy.serialization import serializable
from eggroll.strategy.state import State
from eggroll.strategy.update.optimizer import Factory, Rate, Sigma
from eggroll.strategy.update.shaping import Shaping


class Options(TypedDict, total=False):
    """Options of `eggroll.ES`."""

    population: int
    sigma: Sigma
    rank: int
    optimizer: optax.GradientTransformation | Factory | None
    learning_rate: Rate
    shaping: Shaping
    antithetic: bool
    distribution: str
    rules: Rules
    small_layers: Small
    groups: int
    noise_reuse: int
    chunk: Chunk
    mesh: Mesh | None
    sharding: Sharding
    update: Literal["auto", "members", "weights"]
    fallback: Fallback
    noise: Literal["weights", "activations"]
    credit: Literal["dependent", "own"]
    discount: float
    relative: bool


@serializable
@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class ModelState(State):
    """The state of a run of a model: a pytree as `eggroll.State`, with all that makes the model.

    Attributes:
        rest: the model's state that is not trained: batch statistics, RNG streams, caches.
        graphdef: the model without its arrays, as `nnx.split` gives it.
    """

    rest: nnx.State
    graphdef: Any = field(metadata={"static": True})

    owner: ClassVar[str] = "eggroll.nnx.ES"


class ES(arrays.ES):
    """`eggroll.ES` for a Flax NNX model: functions take the model, and its other state is carried as it should be.

    Only the variables that `wrt` selects are perturbed. What a fitness function changes of the others (batch
    statistics, RNG streams, caches) is in the next state: averaged over the members with finite fitness where it is
    floating point; a count in which they differ is refused by name. NNX objects among the arguments (`nnx.Rngs`) are
    written to.

    Args:
        wrt: NNX filter for the variables to train, as of `nnx.Optimizer(..., wrt=...)`. Default `nnx.Param`.
        share_rngs: True (default) gives all members the same dropout masks; False gives every pair its own.
        **options: of `eggroll.ES`.

    Raises:
        ValueError: settings that do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp, optax, eggroll.nnx
        >>> from flax import nnx
        >>> model = nnx.Sequential(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(1)))
        >>> es = eggroll.nnx.ES(population=64, sigma=0.1, optimizer=optax.adam(0.1))
        >>> state = es.init(model, jax.random.key(0))
        >>> x = jax.random.normal(jax.random.key(1), (32, 4))
        >>> fitness = lambda model, x: -jnp.mean((model(x) - x[:, :2]) ** 2)
        >>> for _ in range(60):
        ...     state, metrics = es.step(state, fitness, x)
        >>> model = es.model(state)
        >>> model.eval()
        >>> bool(fitness(model, x) > -0.1)
        True
    """

    def __init__(self, *, wrt: Any = nnx.Param, share_rngs: bool = True, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.wrt, self.share_rngs = wrt, share_rngs

    def __repr__(self) -> str:
        return f"nnx.{super().__repr__()}"

    @classmethod
    def parameters(cls) -> Mapping[str, Parameter]:
        """See `Strategy.parameters`."""
        return {name: x for name, x in {**arrays.ES.parameters(), **super().parameters()}.items() if name != "options"}

    def options(self) -> dict[str, Any]:
        """See `Strategy.options`."""
        return {**super().options(), "share_rngs": self.share_rngs}

    def init(self, model: nnx.Pytree, key: jax.Array) -> ModelState:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A fresh state of a model, which is not changed.

        Args:
            model: NNX module, or a tuple, list or dictionary of such, in the mode in which its members are to be
                evaluated, as a rule that of training.
            key: a `jax.random` key, typed or legacy.

        Returns:
            The state of generation 0.

        Raises:
            TypeError: no NNX module, and as `eggroll.ES.init`.
            ValueError: `wrt` selects nothing, and as `eggroll.ES.init`.
        """
        _, params, _ = Split.of((model,), self.wrt)
        return self._carrying(super().init(params, key), model)

    def model(self, state: State) -> Any:
        """The model of a state: a new one, so that nothing done to it changes the state.

        It is in the mode that `init` saw; for use, `model.eval()` it. Or bring an own one up to date:
        `nnx.update(own, nnx.state(es.model(state)))`.
        """
        own = _checked(state)
        return nnx.merge(own.graphdef, as_state(own.params), own.rest, copy=True)

    def ask(self, state: State) -> ModelMembers:
        """The members of the next generation; see `Strategy.ask`."""
        model = self.model(state)
        return ModelMembers(state.params, state.generation, self.draw(state), model, self.wrt, self.share_rngs)

    def tell(self, state: State, members: Members, fitness: Numbers) -> tuple[ModelState, Metrics]:
        """See `Strategy.tell`; the model's other state is what the members' functions left of it."""
        old = _checked(state)
        check_members(members)
        if not isinstance(members, ModelMembers):
            raise TypeError(
                "got members of an eggroll.ES for an eggroll.nnx.ES: what es.ask(state) returned is required. Tell the "
                "ES that you asked."
            )
        core, metrics = super().tell(_core(old), members, fitness)
        return self._carrying(core, members.model_after(metrics["fitness"]), old), metrics

    def step(
        self,
        state: State,
        fitness_fn: Function,
        *args: Any,
        in_axes: InAxes = None,
        has_aux: bool = False,
        **kwargs: Any,
    ) -> tuple[ModelState, Metrics]:
        """Ask, apply and tell in one compiled call, of a `fitness_fn(model, *args, **kwargs)`; see `Strategy.step`.

        Pass the same `fitness_fn` object at every call: a new one is compiled anew.
        """
        check_function("fitness_fn", fitness_fn, "es.step(state, fitness_fn, *args)")
        old, model = _checked(state), self.model(state)
        call = Call(model, args, kwargs, self.wrt)
        keys = [] if self.share_rngs else call.keys(self.population, self.settings.antithetic, self._key(state))
        axes = axes_of(in_axes, self.share_rngs)
        function, inputs = Pure(fitness_fn, has_aux), call.arguments(keys)
        core, metrics = super().step(_core(old), function, *inputs, in_axes=axes, has_aux=True)
        aux, changed = metrics.pop("aux")
        call.write(changed, core.generation == old.generation)
        return self._carrying(core, model, old), {**metrics, "aux": aux} if has_aux else metrics

    def _carrying(self, core: State, model: Any, old: ModelState | None = None) -> ModelState:
        """The state of arrays with the other state of `model`; with the old one where the generation was lost."""
        graphdef, _, rest = nnx.split(model, self.wrt, ...)
        rest = jax.tree.map(jnp.asarray, rest)  # variables that nobody else has
        if old is not None:
            rest = kept_if(core.generation == old.generation, old.rest, rest)
        return ModelState(core.params, core.master, core.opt_state, core.key, core.generation, rest, graphdef)


class ModelMembers(Members):
    """A population of models of which none exists until it is evaluated; see `eggroll.Members`.

    Every member goes on from `apply` to `apply` with the state that its own evaluation left.
    """

    def __init__(
        self, params: PyTree, generation: Any, draw: Draw, model: nnx.Pytree, wrt: Any, share_rngs: bool
    ) -> None:
        super().__init__(params, generation, draw)
        self._model, self._wrt, self._share_rngs = model, wrt, share_rngs
        self._own: set[Any] = set()  # paths of the state that has a row per member

    def plan_for(self, fun: Function, *args: Any, in_axes: InAxes = None, **kwargs: Any) -> Plan:
        """As `eggroll.Members.plan_for`, for `fun(model, *args, **kwargs)`."""
        _, inputs, axes = self._called(args, in_axes, kwargs)
        return super().plan_for(Pure(fun, False), *inputs, in_axes=axes)

    def apply(
        self, fun: Function, *args: Any, in_axes: InAxes = None, chunk: Chunk | None = None, **kwargs: Any
    ) -> PyTree:
        """Evaluates `fun(model, *args, **kwargs)` for every member, in compiled chunks; see `eggroll.Members.apply`.

        What `fun` changes of its model is kept for every member until it is told.

        Example:
            >>> import jax, jax.numpy as jnp, eggroll.nnx
            >>> from flax import nnx
            >>> es = eggroll.nnx.ES(population=8, sigma=0.1)
            >>> members = es.ask(es.init(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jax.random.key(0)))
            >>> members.apply(lambda model, x: model(x), jnp.ones((5, 4))).shape
            (8, 5, 3)
        """
        check_function("fun", fun, "members.apply(fun, *args)")
        call, inputs, axes = self._called(args, in_axes, kwargs)
        out, (_, changed) = super().apply(Pure(fun, False), *inputs, in_axes=axes, chunk=chunk)
        every, found = jnp.ones(len(self), bool), jax.tree_util.tree_leaves_with_path(changed)
        self._own |= {path for path, x in found if path[0].key == 0 and jnp.issubdtype(x.dtype, jnp.floating)}
        check_shared(found)
        call.write(self._with_own(lambda x: x, changed, lambda x: averaged(x, every)))
        return out

    def some(self, who: Any, fun: Function, *args: Any, in_axes: InAxes = None, **kwargs: Any) -> PyTree:
        """Not of models: each member goes on with a state of its own, which all of them leave together.

        Raises:
            TypeError: always.
        """
        raise TypeError("got some of the members of a model, which are evaluated together: use members.apply.")

    def materialize(self, i: int | jax.Array) -> Any:
        """The model of member `i`, with the state that it has; see `eggroll.Members.materialize`."""
        params = super().materialize(i)
        split, _, rest = Split.of((self._model,), self._wrt)
        return split.merge(params, self._with_own(lambda x: x[i], rest))[0]

    def model_after(self, fitness: jax.Array) -> Any:
        """The model with the state of the members of finite `fitness [N]`, averaged."""
        split, params, rest = Split.of((self._model,), self._wrt)
        finite = jnp.isfinite(fitness)
        return split.merge(params, self._with_own(lambda x: averaged(x, finite), rest))[0]

    def _with_own(self, fun: Function, rest: PyTree, other: Function = lambda x: x) -> Any:
        """`rest` with `fun` of what has a row per member, and `other` of what has none."""
        return jax.tree_util.tree_map_with_path(lambda path, x: (fun if path in self._own else other)(x), rest)

    def _called(self, args: tuple, in_axes: InAxes, kwargs: dict[str, Any]) -> tuple[Call, tuple, tuple]:
        call, who = Call(self._model, args, kwargs, self._wrt), self.settings
        keys = [] if self._share_rngs else call.keys(who.size, who.antithetic, self._draw.key)
        rest = self._with_own(lambda _: 0, call.rest, lambda _: None) if self._own else None
        return call, call.arguments(keys), axes_of(in_axes, self._share_rngs, rest)


def _checked(state: object) -> ModelState:
    if not isinstance(state, ModelState):
        raise TypeError(
            f"got {type(state).__name__} as the state; an eggroll.nnx.ModelState is required. Make one from a model "
            "with es.init(model, key); tell and step return (state, metrics)."
        )
    return state


def _core(state: ModelState) -> State:
    """What an ES of arrays knows of a state."""
    return State(state.params, state.master, state.opt_state, state.key, state.generation)
