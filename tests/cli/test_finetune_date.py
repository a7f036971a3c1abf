"""`eggroll finetune` with a chat template that writes the date: a run goes on with that of its beginning."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import call
from tests.cli.test_finetune import ASKED, OPTIONS, write_inputs


class Then(datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2024, 7, 26, tzinfo=tz)


@pytest.mark.slow
def test_a_run_keeps_to_its_date_and_to_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chat template may write today's date, as that of Llama 3.2 does."""
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    template = tmp_path / "base/chat_template.jinja"
    before = template.read_text(encoding="utf-8")
    command = ("finetune", "--model", "base", *ASKED, *OPTIONS, "--out", "dated", "--eval-every", "2")
    template.write_text("{{ strftime_now('%d %b %Y') }}" + before, encoding="utf-8")
    with monkeypatch.context() as at:
        at.setattr("eggroll.llm.finetuning.run_facts.datetime", Then)
        assert call(*command, "--generations", "1") == 0
    assert json.loads((tmp_path / "dated/config.json").read_text())["options"]["date"] == "2024-07-26T00:00:00"
    assert call(*command, "--resume", "--generations", "2") == 0
    template.write_text("{{ strftime_now('%Y %b %d') }}" + before, encoding="utf-8")
    assert call(*command, "--resume", "--generations", "3") == 2
    assert "prompt_tokens: " in capsys.readouterr().err
