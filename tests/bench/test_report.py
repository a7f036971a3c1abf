"""`bench.tools.report`: the card, the kept file and the last line."""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from bench.tools import report as reporting
from bench.tools.environment import describe, device_slug, processor
from bench.tools.options import Common
from bench.tools.report import Report


@dataclass(frozen=True)
class Options(Common):
    width: tuple[int, ...] = (2, 3)


@pytest.fixture
def result() -> Report:
    rows = [
        {"name": "a", "share_per_cent": np.float32(12.5), "best": float("nan"), "count": jnp.int32(3)},
        {"name": "[b]", "share_per_cent": 1 / 3, "best": None, "count": 4},
    ]
    return Report("layer", Options(), rows, ["a note [with] brackets"], {"ratio_of_all": 2.0})


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_the_last_line_holds_everything(result, capsys):
    result.finish(quick=True)
    content = last_line(capsys)
    assert content["question"] == "layer" and content["summary"] == {"ratio_of_all": 2.0}
    assert content["settings"] == {"quick": False, "out": None, "width": [2, 3]}
    assert content["notes"] == ["a note [with] brackets"]
    assert content["rows"][0] == {"name": "a", "share_per_cent": 12.5, "best": None, "count": 3}
    assert content["rows"][1]["share_per_cent"] == pytest.approx(1 / 3, rel=1e-5)
    environment = content["environment"]
    assert environment["platform"] == "cpu" and environment["cores"] >= 1
    assert environment["versions"]["jax"] and environment["versions"]["eggroll-jax"]


def test_a_processor_is_told_from_others_of_its_name():
    first = "processor\t: 0\ncpu family\t: 23\nmodel\t\t: 49\nmodel name\t: AMD EPYC\ncache size\t: 512 KB\n"
    second = "\nprocessor\t: 1\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC 2\n"
    assert processor(first + second) == "AMD EPYC family 23 model 49"
    assert processor("model name\t: Some ARM core\n") == "Some ARM core"
    assert processor("Hardware\t: a board\n") == ""


def test_the_card_shows_rows_notes_and_summary(result, capsys):
    result.finish(quick=True)
    card = capsys.readouterr().out.rsplit("\n", 2)[0]
    for text in ("share per cent", "12.5", "a note [with] brackets", "ratio of all: 2"):
        assert text in card


def test_a_quick_run_is_not_kept_unless_told(result, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "RESULTS", tmp_path / "results")
    result.finish(quick=True)
    assert not (tmp_path / "results").exists()
    result.finish(quick=True, out=tmp_path / "deep" / "kept.json")
    kept = json.loads((tmp_path / "deep" / "kept.json").read_text())
    assert kept == last_line(capsys)


def test_a_full_run_is_kept_by_question_and_device(result, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    result.finish(quick=False)
    assert json.loads((tmp_path / "layer" / f"{device_slug()}.json").read_text()) == last_line(capsys)


def test_the_devices_name_fits_a_file():
    slug = device_slug()
    assert slug == slug.lower() and pathlib.Path(slug).name == slug and " " not in slug
    assert describe()["platform"] in slug
