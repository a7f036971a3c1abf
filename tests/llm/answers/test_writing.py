"""Answers under noise on activations: what is read for the gradient is what was written, and runs can be replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from eggroll.engine.interpreter import Policy
from eggroll.llm.answers.decoding import Decoding, generator, split
from eggroll.llm.answers.generation import generate
from eggroll.llm.answers.prompts import Prompts
from eggroll.llm.answers.writing import UNDER_NOISE, writer
from eggroll.llm.finetuning.step import Answered
from eggroll.strategy.activations.noise import Retold
from eggroll.strategy.activations.sites import find_sites, walked
from eggroll.strategy.activations.streams import Streams
from eggroll.strategy.evaluate.compiled import CompiledCache
from eggroll.strategy.evaluate.tracing import make_rows
from eggroll.strategy.noise.keys import generation_key
from eggroll.strategy.update.written import _turn_axes, as_written, reading
from eggroll.training import fit, named, replay
from eggroll.training.metrics import not_counted
from tests.llm import truth
from tests.llm.climbing import asked, language, marker

GROUPS, N, SIGMA = 3, 12, 0.3
IN_AXES = (None, None, 0)


def strategy(**options: Any) -> eggroll.ES:
    options = {"population": N, "groups": GROUPS, "shaping": "group", "sigma": SIGMA, "fallback": "error"} | options
    return eggroll.ES(optimizer=named("adam", learning_rate=0.01), **UNDER_NOISE["activations"], **options)


def test_without_noise_it_writes_what_the_generator_writes() -> None:
    graphdef, params = truth.model()
    fun, prompts = generator(graphdef, truth.ENDING), truth.prompts()
    want = jax.jit(fun)(params, *prompts)
    each = jax.jit(jax.vmap(writer(fun), (None, None, None, 0)))(params, *prompts, jnp.arange(3))
    np.testing.assert_array_equal(each.tokens[:, 0], want.tokens)
    np.testing.assert_array_equal(each.length[:, 0], want.length)


@pytest.mark.slow
def test_the_noise_that_is_read_with_is_that_of_writing() -> None:
    """Logits after the last token that is read, with noise, choose the answer's last token: by all turns before it.

    Of all members at once, where they wrote in chunks. `tests/strategy/test_written.py` has the update.
    """
    graphdef, params = truth.model()
    fun, prompts = writer(generator(graphdef, Decoding(truth.MAX_TOKENS))), truth.prompts()
    es = strategy(chunk=4)
    state = es.init(params, jax.random.key(7))
    members, args = es.ask(state), (*prompts, np.arange(GROUPS, dtype=np.int32))
    wrote = members.apply(fun, *args, in_axes=IN_AXES)
    rows = make_rows(args, IN_AXES, N, GROUPS)
    program, every = reading(CompiledCache(), fun, members.plan, params, rows, wrote, 2)
    given = every.merged(every.of_members(0, N))
    sites = find_sites(program, params, given, members.plan.by_output)[0]
    written = members.plan.sites
    streams = as_written(Streams.of(generation_key(state.key, 0, 1), written, "rademacher", N), written, sites)

    @jax.jit
    def logits(sigma: float) -> jax.Array:
        credit = jnp.ones((N, truth.MAX_TOKENS))
        axes = _turn_axes(members.plan.sites, sites, N, truth.MAX_TOKENS)
        hook = Retold(streams, 0, 2, sigma, True, credit, axes)
        return walked(program, hook, Policy("error"), (params, *given), members.plan.by_output, True)[0]

    last = np.asarray(wrote.tokens)[:, 0, -1]
    np.testing.assert_array_equal(jnp.argmax(logits(SIGMA), -1), last)
    assert (np.argmax(logits(0.0), -1) != last).any(), "noise should matter"
    assert {site.paths for site in sites} == {
        (f"layers/{name}",) for name in ("query", "key", "value", "out", "gate", "up", "down")
    }


def test_explain_shows_the_outputs_that_get_noise() -> None:
    graphdef, params = truth.model()
    fun, options = writer(generator(graphdef, truth.ENDING)), UNDER_NOISE["activations"]
    given = {"noise": "activations", "rules": options["rules"], "in_axes": IN_AXES, "population": GROUPS}
    found = eggroll.explain(fun, params, *truth.prompts(), jnp.arange(GROUPS), **given)
    config = truth.CONFIG
    sizes = [site.size for site in found.plan.sites]
    heads, shared = config.heads * config.head_width, config.key_value_heads * config.head_width
    own = [shared, shared, heads, config.width, config.hidden, config.hidden, config.width]
    assert sizes == [config.layers * n for n in own] and "layers/gate" in str(found)


def test_members_write_one_answer_each() -> None:
    graphdef, params = truth.model()
    es = strategy(groups=1)
    with pytest.raises(ValueError, match=r"got prompts \[3\] for 1 groups.*\[groups, 1\] are required"):
        generate(es.ask(es.init(params, jax.random.key(0))), generator(graphdef, truth.ENDING), truth.prompts())


@pytest.mark.slow
def test_a_run_is_resumed_and_replayed_bit_for_bit(tmp_path: Path) -> None:
    model = language()
    graphdef, params = split(model.model)
    fun = generator(graphdef, Decoding(4, 0.8, stop=model.stop, pad=model.pad))
    questions, es, draws = asked(model, 2 * GROUPS), strategy(), jax.random.key(3)

    def batch(generation: int) -> tuple[Any]:
        return (questions.take(np.arange(GROUPS) + GROUPS * (generation % 2)),)

    def run(folder: Path, generations: int, *, resume: bool = False) -> Any:
        state = es.init(params, jax.random.key(1))
        step = Answered(fun, marker(model), key=draws)
        options = {"carry": not_counted(), "folder": folder, "resume": resume}
        return fit(es, state, step, batch, generations=generations, **options).state

    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 3, resume=True)

    def data(generation: int) -> tuple:
        prompts: Prompts = batch(generation)[0].prompts
        own = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(draws, generation), jnp.arange(GROUPS))
        return (*prompts, jnp.arange(GROUPS), own)

    axes = (*IN_AXES, 0)
    again = replay(params, tmp_path / "whole" / "ledger.bin", fitness=writer(fun), data=data, in_axes=axes)
    for other in (parts, again):
        for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(other.params), strict=True):
            np.testing.assert_array_equal(a, b)
    assert int(again.generation) == 3
    assert not np.array_equal(whole.params["layers"]["query"][...], params["layers"]["query"][...])
    np.testing.assert_array_equal(whole.params["embed"][...], params["embed"][...])
