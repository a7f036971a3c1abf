"""The only file that touches version-sensitive JAX internals.

Supported: JAX 0.10.2 to 0.12. What moved in that range: `ClosedJaxpr` became an alias of `Jaxpr`, and scan's
`num_consts`/`num_carry` parameters became the flattened trees `ft_in`/`ft_out`.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import config, core, distributed, source_info_util, xla_bridge
from jax._src.interpreters import batching, partial_eval
from jax._src.lax.control_flow import loops
from jax.experimental.scheduling_groups import xla_metadata_call
from jax.extend import core as jex

from eggroll.engine.annotations import Function, Jaxpr, JaxprEqn, OpenJaxpr

Literal = jex.Literal

# What serves JAX 0.10 on CPUs alone. Its XLA puts a rank-1 correction into the product's own epilogue, where it costs
# nothing, if inputs, factors and outputs are plain matrices `[members, n]`. A factor that two members share is a
# broadcast, which keeps it out: the outputs are then written, read and written again. So each member gets a copy of its
# noise, as bytes, which the epilogue widens. The XLA of JAX 0.12 fuses them, too, but is then no faster than with both
# apart. (bench/LOG.md, "The correction in the product's epilogue".)
# It goes when JAX 0.10 is no longer supported, and with it `may_copy`, `_square`, `Arrangement.copies` and `flops`,
# `columns` and `loops` of `Need` in strategy/evaluate/chunking.py, and `signs` of `draw` in strategy/noise/sampler.py.
CORRECTIONS_ARE_FREE = jax.__version_info__ < (0, 11)


def open_jaxpr(jaxpr: Any) -> tuple[OpenJaxpr, Sequence[Any]]:
    """Splits an open or closed jaxpr into `(open jaxpr, constants)`."""
    consts = getattr(jaxpr, "consts", ())
    return getattr(jaxpr, "jaxpr", jaxpr), tuple(consts)


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """Number of constants and of carries of a scan equation."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def bind(eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Evaluates an equation on `args`, keeping its source line, name stack and context."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with source_context(eqn):
        # get_bind_params returned a pair (functions, params) before JAX 0.10.
        outs = eqn.primitive.bind(*args, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def source_context(eqn: JaxprEqn) -> Any:
    """A context in which new operations carry the source line and name of `eqn`."""
    from contextlib import ExitStack

    stack = ExitStack()
    names = source_info_util.current_name_stack() + eqn.source_info.name_stack
    traceback = eqn.source_info.traceback
    if _user_frame(traceback) is None:
        traceback = None  # keeps that of the call around it
    stack.enter_context(source_info_util.user_context(traceback, name_stack=names))
    stack.enter_context(eqn.ctx.manager)
    return stack


def call_apart(fun: Function, *args: Any) -> Any:
    """`fun(*args)` as a call that XLA does not inline, so that nothing is fused across it."""
    return xla_metadata_call(fun, inlineable="false")(*args)


def source_line(eqn: JaxprEqn) -> str:
    """`file:line (function)` of the user's code that made the equation.

    JAX keeps none for its own functions that are jitted; then it is the line of the call around them.
    """
    for traceback in (eqn.source_info.traceback, source_info_util.current().traceback):
        if (frame := _user_frame(traceback)) is not None:
            return f"{frame.file_name}:{frame.start_line} ({frame.function_name})"
    return "an unknown line"


def _user_frame(traceback: Any) -> Any | None:
    """The innermost frame that is neither JAX's, nor ours, nor, where there is another, Flax's."""
    ours = str(Path(__file__).parents[1])
    frames = [f for f in source_info_util.user_frames(traceback) if not f.file_name.startswith(ours)]
    return next((f for f in frames if "flax" not in Path(f.file_name).parts), frames[0] if frames else None)


def drop_dead_code(jaxpr: OpenJaxpr) -> OpenJaxpr:
    """Removes equations, nested ones included, whose results nothing uses."""
    kept, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), True)
    return kept


def is_batched(value: Any) -> bool:
    """Whether a value differs along an axis of the `vmap` inside which this runs."""
    return isinstance(value, batching.BatchTracer)


def as_jax(value: Any) -> Any:
    """NumPy's arrays, which constants may be, as JAX's: rules index them by traced positions."""
    return jnp.asarray(value) if isinstance(value, np.ndarray) and value.ndim else value


def abstract(value: Any) -> jax.ShapeDtypeStruct:
    """The shape, dtype and weak type of an array, tracer or number."""
    aval = jax.typeof(value)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def inner_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs that an equation calls."""
    return list(jex.jaxprs_in_params(eqn.params))


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every equation, those of inner jaxprs included."""
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


def name_stacks(jaxpr: Jaxpr) -> Iterator[str]:
    """The names around every equation."""
    return (str(eqn.source_info.name_stack) for eqn in equations(jaxpr))


def where_run(eqn: JaxprEqn) -> str:
    """What contexts of the user's inside a function ask of an equation: where it runs, and names for the compiler."""
    return f"{eqn.ctx.compute_type} {eqn.ctx.xla_metadata}"


def trace_context() -> Hashable:
    """The settings of JAX that decide what a trace is made of: precision, promotion, 64-bit mode, keys, the mesh."""
    return config.trace_context(), jax.config.jax_default_prng_impl  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Traced:
    """What the outermost trace has made.

    Attributes:
        jaxpr: its constants are its first inputs.
        consts: of them.
        carries: how many of the other inputs are a loop's carries; None: it is no loop's body.
        is_call: whether it is a function that is compiled, which later calls run again as it is.
    """

    jaxpr: OpenJaxpr
    consts: Sequence[Any]
    carries: int | None
    is_call: bool


_AROUND: ContextVar[Any] = ContextVar("_AROUND", default=None)


@contextmanager
def apart() -> Iterator[None]:
    """What is traced inside is a function of its own, not a part of one that is being traced around."""
    before = _AROUND.set(core.trace_ctx.trace)
    try:
        yield
    finally:
        _AROUND.reset(before)


def when_traced(done: Callable[[Traced], None]) -> bool:
    """Has `done(traced)` called when the outermost trace around is done; False where nothing is compiled.

    Outermost is that of a function traced `apart`, too. Of several calls under one trace the first one counts.
    """
    trace, root = core.trace_ctx.trace, None
    while trace is not None and trace is not _AROUND.get():
        root = trace if isinstance(trace, partial_eval.DynamicJaxprTrace) else root
        trace = getattr(trace, "parent_trace", None)
    if root is not None and type(root.frame) is partial_eval.JaxprStackFrame:
        root.frame.__class__ = _telling(done)
    return root is not None


@functools.lru_cache(maxsize=16)
def _telling(done: Callable[[Traced], None]) -> type:
    class Frame(partial_eval.JaxprStackFrame):
        """A trace's frame, which tells when its jaxpr is made."""

        __slots__ = ()

        def to_jaxpr(self, *args: Any) -> Any:
            jaxpr, consts = super().to_jaxpr(*args)
            kind = getattr(self.debug_info, "traced_for", None)
            carries = _carries(len(self.invars)) if kind in ("scan", "while_body", "fori_loop") else None
            done(Traced(jaxpr, consts, carries, kind in ("jit", "pmap", "shard_map")))
            return jaxpr, consts

    return Frame


def _carries(inputs: int) -> int:
    """How many of the inputs of a loop's body are carries: all of them, unless it is a scan's."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == loops.__file__ and "init_flat" in frame.f_locals:
            return len(frame.f_locals["init_flat"])
        frame = frame.f_back
    return inputs


def devices_started() -> bool:
    """Whether JAX has made its devices, after which no other process can join."""
    return xla_bridge.backends_are_initialized()


def forget_distributed() -> None:
    """Lets go of `jax.distributed` without the farewell at which this process would wait for those that are gone.

    Its objects are kept alive for good: their destructors would say that farewell.
    """
    state = distributed.global_state
    for kept in (state.preemption_sync_manager, state.client, state.service):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    state.preemption_sync_manager = state.client = state.service = None


# Random bits depend on the batch: JAX's `rbg` and `unsafe_rbg` draw those of a whole `vmap` from its first key. Members
# would see other bits than alone, two of a pair different ones, and all of them others in other chunks. So where keys
# differ between members, each member's bits are drawn by themselves, in a loop. Keys that all share cost nothing.

# By primitive: the dtypes of keys whose results are the same in a batch as alone.
_KEPT = {
    "random_bits": ("key<fry>",),
    "random_gamma": ("key<fry>",),
    "random_split": ("key<fry>", "key<rbg>"),
    "random_fold_in": ("key<fry>", "key<rbg>"),
    "rng_bit_generator": (),
}


def draws(eqn: Any) -> bool:
    """Whether the equation draws bits that depend on the batch."""
    kept = _KEPT.get(eqn.primitive.name)
    return kept is not None and str(eqn.invars[0].aval.dtype) not in kept


def draws_inside(eqn: JaxprEqn) -> bool:
    """Whether a jaxpr that the equation calls draws such bits."""
    return any(draws(e) for jaxpr in inner_jaxprs(eqn) for e in equations(jaxpr))


def holds(eqn: JaxprEqn, names: Collection[str]) -> bool:
    """Whether a jaxpr that the equation calls has one of these primitives."""
    return any(e.primitive.name in names for jaxpr in inner_jaxprs(eqn) for e in equations(jaxpr))


def bind_alone(eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Evaluates an equation; of a batch under `vmap`, one after the other."""
    return jax.custom_batching.sequential_vmap(lambda *own: bind(eqn, own))(*args)
