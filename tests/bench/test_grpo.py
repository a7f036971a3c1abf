"""GRPO's objective against formulas written out, and a run that learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from bench import grpo
from bench.tools.grpo_loss import Batch, Objective, advantages, log_probabilities, row_objectives
from bench.tools.grpo_training import Grpo, Recipe
from bench.tools.tiny_language import tiny_language
from eggroll.llm.answers.decoding import Answers, Decoding, generator
from eggroll.llm.tasks import task_named
from tests.llm import tiny
from tests.llm.climbing import SIZES

WANTED, LENGTH = 7, 6  # a token, and the tokens of every answer


def decoder() -> tuple[Any, Any]:
    """A model with one tiny layer."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = tiny.language_model("smollm2", **sizes, num_key_value_heads=1, vocab_size=12).model
    return nnx.split(model)


def batch(rows: int = 4) -> Batch:
    """Random answers, of different lengths."""
    rng = np.random.default_rng(0)
    tokens, answers = rng.integers(1, 12, (rows, 5)), rng.integers(1, 12, (rows, LENGTH))
    start, length = np.arange(rows, dtype=np.int32) % 3, np.array([1, 3, LENGTH, 2])[:rows].astype(np.int32)
    gains = np.array([1.0, -1.0, 0.5, -0.25], np.float32)[:rows]
    return Batch(tokens.astype(np.int32), start, answers.astype(np.int32), length, gains)


def test_advantages_are_z_scores_of_each_group() -> None:
    """Scores of one prompt say nothing of another's."""
    rewards = np.array([[1.0, 2.0, 6.0], [0.1, 0.1, 0.1], [0.0, 0.0, 1e-3]])
    got = advantages(rewards)
    np.testing.assert_allclose(got[0], (rewards[0] - 3) / np.std([1.0, 2.0, 6.0]))
    np.testing.assert_array_equal(got[1], 0)
    np.testing.assert_allclose(got[2], np.array([-1, -1, 2]) / 2**0.5)


def test_log_probabilities_are_those_of_each_token_after_the_ones_before() -> None:
    """Row by row, without padding, one token after the other."""
    graphdef, params = decoder()
    rows, model = batch(3), nnx.merge(graphdef, params)
    got = jax.jit(lambda p, b: log_probabilities(graphdef, p, b))(params, rows)
    logits = jax.jit(lambda t, s: model(t, s))(np.concatenate([rows.tokens, rows.answers], 1), rows.start)
    want = jax.nn.log_softmax(logits)
    for i in range(3):
        for t in range(LENGTH):
            np.testing.assert_allclose(got[i, t], want[i, 4 + t, rows.answers[i, t]], rtol=1e-4, atol=1e-5)


def test_objective_is_the_papers() -> None:
    """Equation 3 of DeepSeekMath, in Python numbers: the smaller of both products, a mean over the answer's tokens."""
    rng, rows = np.random.default_rng(1), batch()
    now, old, reference = (np.log(rng.uniform(0.1, 0.9, (4, LENGTH))).astype(np.float32) for _ in range(3))
    objective = Objective(clip=0.2, kl=0.04)
    got = row_objectives(objective, jnp.asarray(now), rows._replace(old=old, reference=reference))
    for i in range(4):
        gain, terms = float(rows.advantages[i]), []
        for t in range(rows.length[i]):
            ratio = float(np.exp(now[i, t] - old[i, t]))
            held = min(max(ratio, 0.8), 1.2)
            apart = float(np.exp(reference[i, t] - now[i, t]) - (reference[i, t] - now[i, t]) - 1)
            terms.append(min(ratio * gain, held * gain) - 0.04 * apart)
        np.testing.assert_allclose(got[i], np.mean(terms), rtol=1e-4)


@pytest.mark.slow
def test_one_epoch_is_adamw_on_the_policy_gradient_whatever_the_microbatch() -> None:
    """With a ratio of 1 the gradient is that of `advantage · mean log probability`, which is clipped by its norm."""
    graphdef, params = decoder()
    rows, rewards = batch(), np.array([1.0, 0.0, 0.3, 0.9])
    prompts, start = rows.tokens[::2], rows.start[::2]
    rows = rows._replace(tokens=prompts.repeat(2, 0), start=start.repeat(2))
    gains = jnp.array([1.0, -1.0, -1.0, 1.0])  # of two prompts with two answers each

    def reinforce(p: Any) -> Any:
        logs = log_probabilities(graphdef, p, rows)
        mask = jnp.arange(LENGTH) < rows.length[:, None]
        return -(gains * jnp.where(mask, logs, 0).sum(1) / rows.length.astype(np.float32)).mean()

    gradient = jax.jit(jax.grad(reinforce))(params)
    norm = sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)) ** 0.5
    recipe = Recipe(answers=2, microbatch=2, learning_rate=0.1, max_norm=0.5 * norm)
    grpo = Grpo(graphdef, params, lambda *_: Answers(jnp.asarray(rows.answers), jnp.asarray(rows.length)), recipe)
    found = grpo.step(prompts, start, lambda _: rewards, jax.random.key(0))
    assert grpo.tokens == rows.length.sum()
    np.testing.assert_allclose(found["gradient_norm"], norm, rtol=1e-4)
    was, now, g = (np.asarray(ravel_pytree(tree)[0]) for tree in (params, grpo.params, gradient))
    # Adam's first step: both moments, without their bias, are the gradient and its square.
    g = g / 2
    sure = (g == 0) | (np.abs(g) > 1e-4 * norm)  # rounding decides the sign of the others
    assert sure.mean() > 0.9
    np.testing.assert_allclose(now[sure], (was - 0.1 * g / (np.abs(g) + 1e-8))[sure], atol=1e-5)
    with pytest.raises(ValueError, match="microbatch=3"):
        Grpo(graphdef, params, lambda *_: None, Recipe(answers=2, microbatch=3))._parts(rows)


@pytest.mark.slow
def test_learns_to_write_a_token() -> None:
    """From one in twelve to most of an answer: the reward is the share of one token."""
    graphdef, params = decoder()

    generate = generator(graphdef, Decoding(max_tokens=LENGTH, temperature=1.0))
    recipe = Recipe(answers=8, microbatch=32, learning_rate=0.03, epochs=2, objective=Objective(kl=1e-3))
    grpo = Grpo(graphdef, params, generate, recipe)
    prompts, start = batch().tokens, batch().start
    rewards = []
    for n in range(30):
        found = grpo.step(prompts, start, lambda a: (a.tokens == WANTED).mean(1), jax.random.key(n))
        rewards.append(found["reward"])
    # At first a mean over 192 tokens; by chance it would not leave this by 0.1, five standard deviations.
    assert np.mean(rewards[:2]) < 0.3
    assert np.mean(rewards[-5:]) > 0.7
    assert grpo.tokens == 30 * 32 * LENGTH


def test_a_task_with_few_problems_gives_what_it_has() -> None:
    language, task = tiny_language(), task_named("conciseness")
    train, test = grpo.drawn(language, task, grpo.Options(), seed=0)
    assert (len(train), len(test)) == (task.size("train"), task.size("test"))
    many = grpo.drawn(language, task_named("arithmetic", largest=99), grpo.Options(), seed=0)
    assert tuple(map(len, many)) == (1024, 64)  # as `eggroll finetune`
    with pytest.raises(SystemExit, match="prompts=3; there are 2 to train on"):
        grpo.drawn(language, task, grpo.Options(pool=2, prompts=3), seed=0)


@pytest.mark.slow
def test_a_run_on_few_problems(tmp_path: Path) -> None:
    """The documented command, on a tiny model of no quick run."""
    out, sizes = tmp_path / "grpo.json", ["--tokens", "8", "--max-tokens", "2", "--prompts", "2", "--answers", "2"]
    model = tmp_path / "base"
    tiny.folder(model, "smollm2", **SIZES, num_key_value_heads=1)
    few = ["--model", str(model), "--task", "conciseness", *sizes, "--microbatch", "4", "--workers", "1"]
    grpo.main([*few, "--out", str(out)])
    points = json.loads(out.read_text())["series"][0]["points"]
    # Two tokens differ from a reference by a few characters; no answer of one character is worth more than 0.
    assert points[0]["round"] == 0 and points[-1]["tokens"] >= 8 and points[-1]["held_out"] < 0


@pytest.mark.slow
def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny random model answers, is scored, moves and is evaluated; the curve is kept."""
    out = tmp_path / "grpo.json"
    grpo.main(["--quick", "--out", str(out)])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(out.read_text()) == printed
    (curve,) = printed["series"]
    first, last = curve["points"][0], curve["points"][-1]
    assert (first["round"], first["tokens"]) == (0, 0)
    assert 40 <= last["tokens"] < 40 + 2 * 2 * 4
    assert printed["summary"]["held_out_after"] == last["held_out"]
