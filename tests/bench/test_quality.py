import json
import math

import jax
import jax.numpy as jnp
import optax
import pytest

from bench import quality
from bench.quality import Case, Measured, Options, cases
from bench.tools import training
from bench.tools.plots import draw
from bench.tools.training import Curve, Point, Setting, Trainer, tune
from eggroll.recipes.classifier import Classifier
from eggroll.recipes.data import digits, minibatches
from eggroll.recipes.models import build


def curve(points, seed=0):
    return Curve(Setting(), seed, 0.0, tuple(Point(*point) for point in points))


@pytest.mark.slow
def test_the_quick_run_has_a_row_for_every_setting(capsys, tmp_path):
    out = tmp_path / "kept.json"
    quality.main(["--quick", "--out", str(out)])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [(row["factor"], row["value"]) for row in found["rows"]] == [
        *[("default", "default"), ("distribution", "normal"), ("rank", "2"), ("population", "8"), ("sigma", "0.05")],
        ("method", "backpropagation"),
    ]
    for row in found["rows"]:
        assert all(math.isfinite(row[name]) for name in ("loss", "loss_error", "accuracy", "seconds", "compile_s"))
        assert 0 <= row["accuracy"] <= 1 and row["seconds"] > 0
    evolution, backpropagation = (found["rows"][i]["loss"] for i in (0, -1))
    assert backpropagation < evolution  # sixteen members for 85,002 parameters
    assert found["summary"]["loss after 4 updates, evolution"] == evolution
    assert json.loads(out.read_text()) == found
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for one in found["series"]:
        assert one["generation"] == [0, 2, 4] and len(one["loss"]) == len(one["accuracy_error"]) == 3


def test_cases_differ_from_the_default_in_one_factor():
    default, *others, last = cases(Options())
    assert [(case.factor, case.value) for case in others] == [
        *[("distribution", "normal"), ("rank", "4"), ("rank", "16"), ("population", "64"), ("population", "4096")],
        *[("sigma", "0.01"), ("sigma", "0.05")],
    ]
    for case in others:
        mine, usual = vars(case.setting), vars(default.setting)
        names = [name for name in mine if mine[name] != usual[name]]
        assert names == [case.factor]
    assert last.setting.method == "backpropagation"


@pytest.mark.slow
def test_backpropagation_is_adam_on_the_same_minibatches():
    setting = Setting(method="backpropagation", generations=3, batch_size=16, learning_rate=0.02)
    found = Trainer(setting).run(seed=5, every=3).points[-1]

    data, classifier = digits(), Classifier(build("mlp", 5))

    def loss(params, chosen):
        images, labels = jnp.asarray(data.train_images[chosen]), jnp.asarray(data.train_labels[chosen])
        return -classifier.fitness(params, classifier.state, images, labels)[0]

    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 3, alpha=0.02), b2=0.99)
    params, batches = classifier.params, minibatches(len(data.train_labels), 16, 5)
    opt_state = optimizer.init(params)
    for _ in range(3):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            updates, opt_state = optimizer.update(jax.grad(loss)(params, next(batches)), opt_state, params)
        params = optax.apply_updates(params, updates)
    expected = float(loss(params, slice(None)))
    assert found.generation == 3
    assert found.loss == pytest.approx(expected, rel=1e-4)


def test_points_are_measured_before_every_so_many_and_after():
    trainer = Trainer(Setting(method="backpropagation", generations=5, batch_size=8))
    first, again, other = trainer.run(0, every=2), trainer.run(0, every=2), trainer.run(1, every=2)
    assert [point.generation for point in first.points] == [0, 2, 4, 5]
    assert [point.loss for point in first.points] == [point.loss for point in again.points]
    assert first.points[0].loss != other.points[0].loss
    seconds = [point.seconds for point in first.points]
    assert seconds[0] == 0.0 and seconds == sorted(seconds)
    assert again.compile_seconds < first.compile_seconds  # compiled once


def test_times_of_a_curve():
    one = curve([(0, 0.0, 2.3, 0.1), (5, 1.0, 1.0, 0.85), (10, 2.0, 0.5, 0.8), (15, 3.0, 0.4, 0.92)])
    assert one.seconds_to(0.8) == 1.0
    assert one.seconds_to(0.9) == 3.0
    assert one.seconds_to(0.95) is None
    assert one.at_seconds(0.5).generation == 0
    assert one.at_seconds(2.0).generation == 10
    assert one.at_seconds(99.0).generation == 15


def test_means_and_standard_errors():
    curves = tuple(curve([(0, 0.0, loss, 0.5)]) for loss in (1.0, 2.0, 6.0))
    measured = Measured(Case("default", "default", Setting()), curves)
    mean, error = measured.mean(lambda c: c.points[-1].loss)
    assert mean == pytest.approx(3.0)
    assert error == pytest.approx(math.sqrt(7.0 / 3.0))  # variance 7, three seeds
    assert measured.mean(lambda c: None if c is curves[1] else 1.0) == (None, None)
    assert Measured(measured.case, curves[:1]).mean(lambda c: 4.0) == (4.0, None)


def test_tuning_takes_the_rate_with_the_lowest_loss_and_no_nan(monkeypatch):
    losses = {0.01: 0.5, 0.02: float("nan"), 0.04: 0.3, 0.08: 0.9}

    class Fake:
        def __init__(self, setting):
            self.setting = setting

        def run(self, seed, every):
            return curve([(0, 0.0, 2.3, 0.1), (every, 1.0, losses[self.setting.learning_rate], 0.9)])

    monkeypatch.setattr(training, "Trainer", Fake)
    for rates in ((0.01, 0.02, 0.04, 0.08), (0.02, 0.08, 0.04)):
        setting, tried = tune(Setting(), rates, seed=7)
        assert setting.learning_rate == 0.04
        assert list(tried) == list(rates)
    with pytest.raises(ValueError, match="at least one is required"):
        tune(Setting(), (), seed=7)


def test_a_picture_of_more_panels_than_columns_and_of_one_seed(tmp_path):
    series = {"label": "a", "generation": [0, 5], "seconds": [0.0, 1.0], "loss": [2.0, 1.0], "loss_error": [None, None]}
    panel = {"title": "t", "x": "seconds", "y": "loss", "series": [series]}
    path = tmp_path / "new" / "picture.png"
    draw([panel] * 3, path, title="title", columns=2)
    assert path.read_bytes().startswith(b"\x89PNG")
