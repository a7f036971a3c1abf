"""Reports to trackers: every number at its generation, one run for all its parts, and a failure that ends none."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import pytest

from eggroll.training import RunError, Saving, read_metrics
from tests.training.problems import run

STAND_IN = """
runs = []
class Run:
    def __init__(self, given): self.given, self.logged, self.ended = given, [], False
    def log(self, numbers, step):
        if step == 6: raise ConnectionError("no route to host")
        self.logged.append((step, numbers))
    def finish(self): self.ended = True
def init(project, name, config, resume, **more):
    if name.startswith("nobody"): raise ValueError("not logged in")
    runs.append(Run({"project": project, "name": name, "resume": resume, **more}))
    return runs[-1]
"""


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_tracker_has_every_number_of_a_run_that_went_on(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{package}.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setenv(f"{package.upper()}_PROJECT", "mine")
    folder, saving = tmp_path / "digits", Saving(every=2, report_to=(package,))
    run(folder, 3, saving=saving)
    with caplog.at_level(logging.WARNING, "eggroll"):
        assert run(folder, 7, saving=saving, resume=True).ended == "finished"
    first, second = importlib.import_module(package).runs
    assert first.given == second.given and first.given["project"] == "mine" and first.given["resume"] == "allow"
    assert first.given["name"].startswith("digits-") and ("id" in first.given) == (package == "wandb")
    lines = {line.pop("generation"): line for line in read_metrics(folder)}
    assert first.ended and dict(first.logged) == {step: lines[step] for step in (1, 2, 3)}
    assert [step for step, _ in second.logged] == [4, 5]
    assert f"the run goes on without reports to {package}: no route to host" in caplog.text
    with pytest.raises(RunError, match=f"got --report-to {package}, which lets no run begin .not logged in."):
        run(tmp_path / "nobody", 1, saving=saving)
    with pytest.raises(RunError, match="got report_to='mlflow'; one of 'wandb', 'trackio' is required"):
        Saving(report_to=("mlflow",))
