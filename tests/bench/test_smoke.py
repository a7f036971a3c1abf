"""Every bench starts and says what it asks; its `--quick` run is among the slow tests."""

from __future__ import annotations

import importlib

import pytest

from bench.__main__ import QUESTIONS


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_bench_says_what_it_asks(question: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"bench.{question}")
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert not end.value.code
    said = capsys.readouterr().out
    assert "--quick" in said
