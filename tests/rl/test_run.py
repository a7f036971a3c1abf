"""Runs of `eggroll rl`: learning, going on, replaying, evaluating and drawing."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from eggroll.rl import job, load, settings_for, train
from eggroll.rl.settings import PlaySettings
from eggroll.training.folder.arrays import read_arrays
from eggroll.training.metrics import read_before, read_metrics
from eggroll.training.options import SettingsError
from tests.cli.running import call
from tests.rl.worlds import Line, Target

LINE, TARGET, HOST = (f"python:tests.rl.worlds:{name}" for name in ("Line", "Target", "on_host"))
SMALL = {"population": 8, "generations": 6, "width": 8, "layers": 1, "evaluate_every": 2, "checkpoint_every": 2}
SMALL |= {"evaluation_episodes": 4}


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """A run by the command's defaults, but for the target."""
    folder = tmp_path_factory.mktemp("rl") / "line"
    assert call("rl", "--env", LINE, "--out", folder, "--target", Line.BEST, "--evaluate-every", 1, "--seed", 1) == 0
    return folder


def test_the_default_command_learns_the_best_there_is(solved, capsys):
    assert call("rl", "evaluate", solved, "--episodes", 20, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["greedy_return"], found["least"], found["most"]) == (Line.BEST,) * 3
    last = read_metrics(solved)[-1]
    assert (last["greedy_return"], last["greedy_error"]) == (Line.BEST, 0)
    assert 0 < last["live_steps"] <= 256 * Line.limit * last["generation"]
    assert read_before(solved).keys() == {"greedy_return", "greedy_error"}
    assert (solved / "curve.png").stat().st_size > 1000


def test_an_episode_is_drawn(solved, tmp_path, capsys):
    from PIL import Image

    picture = tmp_path / "x.gif"
    assert call("rl", "render", solved, "--out", picture) == 0
    assert "return 8" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert (image.format, image.n_frames) == ("GIF", Line.limit)
    assert call("rl", "render", solved, "--out", picture) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call("rl", "render", solved, "--out", tmp_path / "x.mp4") == 2


@pytest.mark.slow
def test_a_run_that_goes_on_and_a_replay_have_the_same_bits(tmp_path):
    whole = train(settings_for(TARGET, out=tmp_path / "whole", **SMALL))
    halves = settings_for(TARGET, out=tmp_path / "halves", **SMALL)
    seen = []
    train(halves, show=seen.append, asked_to_stop=lambda: len(seen) == 4)
    assert 0 < seen[-1]["generation"] < 6
    resumed = train(settings_for(out=tmp_path / "halves", resume=True, force=False))
    assert resumed.resumed == seen[-1]["generation"]
    assert (resumed.steps, resumed.greedy) == (whole.steps, whole.greedy)
    files = [(tmp_path / name / "parameters.npz") for name in ("whole", "halves", "replayed.npz")]
    assert call("replay", tmp_path / "halves", tmp_path / "halves", "--out", tmp_path / "replayed.npz") == 0
    first, second, replayed = map(read_arrays, (*files[:2], tmp_path / "replayed.npz"))
    assert {"carry/statistics/count", "carry/statistics/mean", "carry/cap", "carry/steps"} < set(first)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        np.testing.assert_array_equal(array, replayed[name])
    assert first["carry/statistics/count"] == whole.steps
    middle = tmp_path / "middle.npz"
    assert call("replay", tmp_path / "whole", tmp_path / "whole", "--out", middle, "--generation", 3) == 0
    assert read_arrays(middle)["carry/statistics/count"] == read_metrics(tmp_path / "whole")[2]["live_steps"]
    job.evaluate(tmp_path / "whole", PlaySettings(parameters=middle, episodes=2))


@pytest.mark.slow
def test_on_the_host_it_is_the_same_command(tmp_path, capsys):
    from PIL import Image

    folder, picture = tmp_path / "host", tmp_path / "x.gif"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert call("rl", "--env", HOST, "--out", folder, "--policy", "gru", *options) == 0
    assert call("rl", "evaluate", folder, "--episodes", 3) == 0
    assert call("rl", "render", folder, "--out", picture) == 0
    with Image.open(picture) as image:
        assert image.size == (8, 8)  # the environment's own frames
    assert load(folder).carry.statistics.count > 0


def test_bad_usage_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "navix", None)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "interrupts.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    told = {
        ("--env", "python:interrupts:World"): "ended the process, by signal Interrupt",
        ("--env", "cartpole"): "Perhaps gymnax:cartpole",
        ("--env", "gym:CartPole-v1"): "Perhaps gym",
        ("--env", "navix:Navix-Empty-5x5-v0"): 'pip install "eggroll-jax[navix]"',
        ("--env", "python:tests.rl.worlds:Maze"): "no such name",
        ("--env", "python:json:loads"): "refuses",
        ("--env", LINE, "--env-option", "=1"): "NAME=VALUE is required",
        ("--env", LINE, "--env-option", "speed=1"): "refuses",
        ("--env", LINE, "--policy", "cnn"): "one image",
        ("--env", LINE, "--cap", "3", "--adaptive-cap"): "one of them",
        ("--env", LINE, "--population", "7"): "even number",
        ("--env", TARGET, "--sample"): "which are not drawn",
    }
    for options, text in told.items():
        assert call("rl", "--out", tmp_path / "none", *options) == 2, options
        assert text in capsys.readouterr().err, options
        assert not (tmp_path / "none").exists()
    assert call("rl", "evaluate", tmp_path / "none") == 2
    assert "no finished run" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="episodes"):
        job.evaluate(tmp_path, PlaySettings(episodes=1))
    assert Target.limit == 3


def test_list_tells_of_what_is_not_installed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "brax", None)
    assert call("rl", "list") == 0
    out = capsys.readouterr().out
    assert 'brax: got no package brax, which environments of brax need: pip install "eggroll-jax[brax]"' in out
    assert "python:MODULE:NAME" in out
