"""Answers in segments: who goes on with whom, and that what each row writes is what it writes among all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eggroll
from eggroll.llm.answers import segments
from eggroll.llm.answers.decoding import WORTH, Answers, Decoding, Paused, _Row, generator
from eggroll.llm.answers.generation import generate, generate_plain
from eggroll.llm.answers.prompts import Prompts
from tests.llm import truth

MEMBERS, EACH, TOKENS = 16, 3, 60


class Pretended:
    """Rows that write their number and how many tokens they have, and end at a length of their own."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths, self.turns = lengths, []

    def begin(self, live: Any) -> Paused:
        none = np.zeros((MEMBERS, len(self.lengths) // MEMBERS), np.int32)
        answers = Answers(np.full((*none.shape, TOKENS), -1, np.int32), none)
        row = _Row(np.zeros(MEMBERS, np.int32), none, none > 0, none, answers)
        number = np.arange(none.size, dtype=np.int32).reshape(none.shape)
        return self._write(Paused(row, (number[:, None],), number, None), 0, int(live))

    def go_on(self, live: Any, count: Any, paused: Paused, chosen: np.ndarray) -> Paused:
        paused = jax.tree.map(np.array, paused)
        assert (paused.start[:, 0] == chosen).all() and (paused.cache[0][:, 0, 0] == chosen).all()
        return self._write(paused, int(count), int(live))

    def _write(self, paused: Paused, count: int, live: int) -> Paused:
        tokens = paused.row.answers.tokens
        before, ends = count, self.lengths[paused.start]
        while count < TOKENS and (count < ends).sum() > (live if count < TOKENS - WORTH else 0):
            tokens[count < ends, count] = (1000 * paused.start + count)[count < ends]
            count += 1
        self.turns.append((ends.size, count - before))
        answers = Answers(tokens, np.minimum(ends, count))
        return paused._replace(
            row=paused.row._replace(count=np.full(len(ends), count), done=count >= ends, answers=answers)
        )


@pytest.mark.parametrize(
    ("kind", "each", "turns"),
    [
        ("a fifth is long", 3, 2),
        ("all lengths", 3, 2),
        ("all alike", 3, 1),
        ("one is long", 3, 2),
        ("halves", 8, 4),
    ],
)
def test_every_row_gets_its_own_answer_whoever_goes_on_with_it(kind, each, turns):
    rows = MEMBERS * each
    rng = np.random.default_rng(0)
    lengths = {
        "a fifth is long": np.where(rng.permutation(rows) % 5 == 0, TOKENS, 10),
        "all lengths": rng.integers(1, TOKENS + 1, rows),
        "all alike": np.full(rows, TOKENS),
        "one is long": np.where(np.arange(rows) == 7, TOKENS, 3),
        "halves": rng.permutation(np.repeat([8, 16, 24, TOKENS], [rows // 2, rows // 4, rows // 8, rows // 8])),
    }[kind]
    pretended = Pretended(lengths)
    answers = segments.in_segments(pretended.begin, pretended.go_on, rows)
    place = np.arange(TOKENS)
    want = np.where(place < lengths[:, None], 1000 * np.arange(rows)[:, None] + place, -1)
    assert np.array_equal(answers.tokens, want) and np.array_equal(answers.length, lengths)
    assert pretended.turns == list(segments.schedule(lengths, TOKENS))
    assert len(pretended.turns) == turns


def test_batches_have_few_sizes():
    sizes = sorted({segments.padded(rows) for rows in range(1, 257)})
    assert sizes == [16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256]
    assert all(segments.padded(rows) >= rows for rows in range(1, 257))
    assert [segments.left_at(rows) for rows in (31, 32, 48, 100, 256)] == [0, 16, 24, 48, 128]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_members_and_models_write_what_they_write_when_all_rows_run_to_the_end(temperature, monkeypatch):
    """The function that is applied to all members runs all their rows until the last is done."""
    graphdef, params = truth.model()
    prompts, decoding = truth.prompts(), Decoding(TOKENS, temperature, stop=(0, 2, 4), pad=truth.PAD)
    fun, key, sizes = generator(graphdef, decoding), jax.random.key(3), []
    taken = segments._rows
    monkeypatch.setattr(segments, "_rows", lambda *given: sizes.append(len(given[1])) or taken(*given))
    given = [jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(EACH))] if temperature else []
    members = truth.ask(params, population=MEMBERS)
    answers, whole = generate(members, fun, prompts, key=key), members.apply(fun, *prompts, *given)
    assert np.array_equal(answers.tokens, whole.tokens) and np.array_equal(answers.length, whole.length)
    assert sizes, "else nothing went on by itself"
    many = Prompts(*(np.concatenate([x] * 12) for x in prompts))
    given = [jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(36))] if temperature else []
    alone, whole = generate_plain(params, fun, many, key=key), fun.compiled(params, *map(jnp.asarray, many), *given)
    assert np.array_equal(alone.tokens, whole.tokens) and np.array_equal(alone.length, whole.length)


def test_full_rank_members_and_parts_of_a_population_take_their_own_rows(monkeypatch):
    """By stand-ins for the two steps, which would be compiled: who is asked for what."""
    graphdef, params = truth.model()
    fun, asked = generator(graphdef, Decoding(TOKENS)), []
    prompts = Prompts(*(np.concatenate([x] * 12) for x in truth.prompts()))

    def plain(params: Any, generator: Any, rows: list[Any]) -> Answers:
        asked.append(params)
        return Answers(np.full((len(rows[0]), TOKENS), len(asked)), np.full(len(rows[0]), TOKENS))

    monkeypatch.setattr("eggroll.llm.answers.generation._plain", plain)
    es = eggroll.FullRankES(population=3, sigma=0.1)
    members = es.ask(es.init(params, jax.random.key(0)))
    answers = generate(members, fun, prompts)
    assert answers.tokens[:, 0, 0].tolist() == [1, 2, 3] and answers.tokens.shape == (3, 36, TOKENS)
    for i, dense in enumerate(asked):
        assert jax.tree.all(jax.tree.map(np.array_equal, dense, members.materialize(i)))
