"""The link checker of the site, on a site of two pages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("links", Path(__file__).parents[2] / "docs/links.py")
links = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(links)

HOME = """<link rel="canonical" href="https://site.example/"><a href="page/#part">1</a> <a href="#top" id="top">2</a>
<a href="page/#gone">3</a> <img src="none.png"> <a href="page/index.html?q#part">4</a> <a href="../outside">5</a>
<a href="https://other.example/x#y">6</a> <a href="mailto:a@b.example">7</a> <a href="/page/">8</a>"""
PAGE = '<h1 id="part">Part</h1> <a href="..">up</a> <a href="../page">here</a> <a href="lost/">lost</a>'


def test_dead_links_and_anchors_are_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="which has no page"):
        links.dead_inside(tmp_path)
    (tmp_path / "page").mkdir()
    (tmp_path / "index.html").write_text(HOME)
    (tmp_path / "page" / "index.html").write_text(PAGE)
    found = [line.split("'")[1] for line in links.dead_inside(tmp_path)]
    assert found == ["../outside", "none.png", "page/#gone", "lost/"]
    assert links.outside(tmp_path) == ["https://other.example/x"]


def test_hosts_that_do_not_answer_are_dead(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    answers = {"a": None, "b": "status 404", "c": "status 403"}
    monkeypatch.setattr(links, "asked", answers.get)
    assert links.dead_outside("abc") == ["b: status 404"]
    assert "c refuses programs" in capsys.readouterr().out
