"""What is known of a program's variables before it runs, those of the programs inside it included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eggroll.engine.annotations import Atom, Jaxpr, JaxprEqn, Var
from eggroll.engine.jax_compat import Literal, inner_jaxprs, open_jaxpr, scan_counts
from eggroll.strategy.dependence.values import Known, constant, evaluate, unknown

CALLS = {"jit", "closed_call", "call", "remat2", "custom_jvp_call", "custom_vjp_call", "custom_vmap_call"}
CALLS |= {"composite", "xla_metadata_call"}  # what runs the one jaxpr that they hold, on all of their operands


@dataclass
class Facts:
    """What is known of each variable of a jaxpr, and of the jaxprs inside its equations, by their numbers.

    The walk back keeps its states here, and which losses are the own of what it could not tell.
    """

    known: dict[Var, Known] = field(default_factory=dict)
    inner: dict[int, list[Facts]] = field(default_factory=dict)
    states: dict[Var, Any] = field(default_factory=dict)
    hints: dict[Var, Any] = field(default_factory=dict)

    def read(self, atom: Atom) -> Known | None:
        """What is known of a variable or a number in the program."""
        return constant(atom.val) if isinstance(atom, Literal) else self.known.get(atom)


def find(jaxpr: Jaxpr, ins: Sequence[Known | None]) -> Facts:
    """What is known of every variable of a jaxpr, given what is known of its inputs."""
    facts = Facts()
    opened, consts = open_jaxpr(jaxpr)
    # Of a jaxpr that an equation holds, JAX hands out the variables of its constants without the numbers.
    fixed = list(map(constant, consts)) if consts else [None] * len(opened.constvars)
    for var, known in zip((*opened.constvars, *opened.invars), (*fixed, *ins), strict=True):
        _learn(facts, var, known)
    for number, eqn in enumerate(opened.eqns):
        args = [facts.read(v) for v in eqn.invars]
        inner = _inner(eqn, args)
        outs: Sequence[Known | None] = [None] * len(eqn.outvars)
        if inner is not None:
            facts.inner[number] = inner
            outs = [unknown(v.aval, maybe=True) for v in eqn.outvars]
            if (body := called(eqn)) is not None:
                outs = [inner[0].read(v) for v in open_jaxpr(body)[0].outvars]
        elif len(eqn.outvars) == 1:
            with np.errstate(all="ignore"):
                outs = [evaluate(eqn, args)]
        for var, known in zip(eqn.outvars, outs, strict=True):
            _learn(facts, var, known)
    return facts


def called(eqn: JaxprEqn) -> Jaxpr | None:
    """The jaxpr that an equation runs as it is, if that is what it does."""
    inner = inner_jaxprs(eqn)[:1] if eqn.primitive.name in CALLS else []
    same = [j for j in inner if len(open_jaxpr(j)[0].invars) == len(eqn.invars)]
    return same[0] if same else None


def _learn(facts: Facts, var: Var, known: Known | None) -> None:
    if known is not None and any(x.any() for x in known[1:]):
        facts.known[var] = known


def _inner(eqn: JaxprEqn, args: list[Known | None]) -> list[Facts] | None:
    """Facts of the jaxprs that an equation runs, whose inputs are known at every turn."""
    name, params = eqn.primitive.name, eqn.params
    if (body := called(eqn)) is not None:
        return [find(body, args)]
    if name == "cond":
        return [find(branch, args[1:]) for branch in params["branches"]]
    if name == "while":
        first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        carry = _carried(params["body_jaxpr"], args[second:], params["body_nconsts"])
        asks = find(params["cond_jaxpr"], [*args[:first], *carry])
        return [asks, find(params["body_jaxpr"], [*args[first:second], *carry])]
    if name == "scan":
        consts, carries = scan_counts(params)
        carry = _carried(params["jaxpr"], args[consts : consts + carries], consts)
        return [find(params["jaxpr"], [*args[:consts], *carry, *map(_every_step, args[consts + carries :])])]
    return None


def _carried(body: Any, first: list[Known | None], consts: int) -> list[Known | None]:
    """What is known of a loop's carries at every turn: those that are handed on as they are stay as they came."""
    opened = open_jaxpr(body)[0]
    carries = zip(first, opened.invars[consts:], opened.outvars, strict=False)
    return [known if out is var else unknown(var.aval, maybe=True) for known, var, out in carries]


def _every_step(known: Known | None) -> Known | None:
    """What holds in each step of what a scan reads step by step."""
    if known is None or not len(known.value):
        return None
    value, exact, low, maybe = known
    same = exact.all(0) & (value == value[:1]).all(0)
    return Known(value[0], same, low.all(0), np.logical_or(maybe, low).any(0) & ~low.all(0) & ~same)
