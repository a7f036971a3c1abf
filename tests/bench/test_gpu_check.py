"""`bench.gpu_check`: one JSON whatever happens to a step, and an exit status that tells of wrong numbers."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
import tyro

from bench import gpu_check
from bench.tools import gpu_steps, kernel_watch
from bench.tools.gpu_steps import FULL, QUICK, Budget, Step, run
from bench.tools.kernel_shapes import PAPER
from bench.tools.networks import NETWORKS

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu_check.sh"
WRONG = """
    from eggroll.kernels import register
    from eggroll.ops.operations import rank_update_reference

    @register("rank_update", "one_off", platforms=("cpu",))
    def one_off(weights, left, right, *, accumulator=None):
        return rank_update_reference(weights, left, right, accumulator=accumulator) + 1
"""
STEPS = """
    import argparse, json, sys, time

    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("--out")
    what = parser.parse_args().what
    if what == "crash":
        sys.exit("it broke")
    if what == "hang":
        time.sleep(60)
    print(json.dumps({"said": what}))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that child processes can import; returns its name."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    return write


def script(tmp_path, *options: str) -> tuple[int, dict]:
    """As a user calls it, from anywhere; its exit status and last line."""
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(SCRIPT), "--cpu", "--quick", *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_script_tells_of_wrong_numbers_and_goes_on(module, tmp_path):
    plugin = module("wrong_kernels", WRONG)
    status, result = script(tmp_path, f"--plugin={plugin}", "--out", "kept.json", "--steps", "check", "kernels")
    assert result == json.loads((tmp_path / "kept.json").read_text())  # relative to where it was called
    assert status == result["exit_status"] == gpu_check.WRONG
    check = result["steps"]["check"]["result"]
    right = check["summary"]["rank_update reference"], check["summary"]["lowrank_dot reference"]
    assert [counts.keys() for counts in right] == [{"ok"}, {"ok"}]
    assert check["summary"]["rank_update one_off"].keys() == {"wrong"}
    assert len(result["wrong"]) == check["summary"]["rank_update one_off"]["wrong"]
    assert list(result["steps"]) == ["environment", "check", "kernels float32"]
    assert {step["status"] for name, step in result["steps"].items() if name != "check"} == {"ok"}


@pytest.mark.parametrize(
    ("verdict", "status"),
    [("ok", 0), ("cannot", gpu_check.FAILED), ("failed", gpu_check.FAILED), ("wrong", gpu_check.WRONG)],
)
def test_the_exit_status_tells_of_wrong_numbers_and_of_lost_checks(verdict, status, monkeypatch, capsys, tmp_path):
    calls = []

    def run_fresh(module, *arguments, seconds):
        calls.append((module, *arguments))
        return {"platform": "cpu", "implementations": {"rank_update": ["reference"]}}

    monkeypatch.setattr(gpu_steps, "run_fresh", run_fresh)
    monkeypatch.setattr(gpu_check, "watched", lambda *_, **__: [{"case": "a", "verdict": verdict}])
    monkeypatch.setenv("OUT", str(tmp_path / "new"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert gpu_check.main(["--cpu"], steps=[Step("timed", "bench.kernels", ("--quick",), 30)]) == status
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "new" / "gpu_check.json").read_text())
    assert result["steps"]["timed"]["status"] == "ok"
    assert calls[1][:4] == ("bench.kernels", "--quick", "--implementations", "reference")


def test_every_core_checks_a_part_of_the_cases(monkeypatch):
    def watched(arguments, **_):
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        return [{"case": f"{options['--part']} of {options['--parts']}", "verdict": "ok", "of": options["--operation"]}]

    monkeypatch.setattr(gpu_check, "watched", watched)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    names = {"lowrank_dot": ["reference"], "rank_update": ["reference", "xla_parts"]}
    cases = gpu_check.check(names, [], Budget(100))["result"]["cases"]
    assert list(cases) == ["lowrank_dot reference", "rank_update reference", "rank_update xla_parts"]
    for name, found in cases.items():
        assert [line["case"] for line in found] == ["0 of 2", "1 of 2"]
        assert {line["of"] for line in found} == {name.split()[0]}


def test_steps_fail_each_for_itself(module):
    name, budget = module("step_of_tests", STEPS), Budget(100)
    crash, hang, good = (
        run(Step(what, name, (what,), seconds), budget) for what, seconds in (("crash", 30), ("hang", 1), ("end", 30))
    )
    assert crash["status"] == "failed" and "it broke" in crash["reason"]
    assert hang["status"] == "timed out" and "within 1 s" in hang["reason"] and hang["seconds"] < 20
    assert good["status"] == "ok" and good["result"] == {"said": "end"}


def test_a_step_without_enough_time_is_skipped(monkeypatch):
    monkeypatch.setattr(gpu_steps, "run_fresh", lambda *_, seconds: seconds)
    budget = Budget(0)
    assert run(Step("late", "nothing", (), 60), budget)["status"] == "skipped"
    budget.seconds = 50
    assert run(Step("short", "nothing", (), 60), budget)["result"] == pytest.approx(50, abs=1)


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert gpu_check.main([]) == gpu_check.NO_DEVICE
    *_, said, last = capsys.readouterr().out.splitlines()
    assert "--cpu" in said and json.loads(last)["exit_status"] == gpu_check.NO_DEVICE


def test_where_nothing_can_be_imported_it_says_why(monkeypatch, capsys):
    def run_fresh(*_, **__):
        raise RuntimeError("No module named 'optax'")

    monkeypatch.setattr(gpu_steps, "run_fresh", run_fresh)
    assert gpu_check.main([]) == gpu_check.NO_DEVICE
    assert "optax" in capsys.readouterr().out.splitlines()[-2]


def test_a_hang_is_one_lost_case(module, monkeypatch):
    """The process is ended, the case is told, the next one is started."""
    script = module("hanging_check", """
        import json, sys, time
        first = int(sys.argv[-1])
        for number in range(first, 3):
            print(json.dumps({"started": number, "case": str(number)}), flush=True)
            if number == 1:
                time.sleep(60)
            print(json.dumps({"number": number, "case": str(number), "verdict": "ok"}), flush=True)
    """)  # fmt: skip
    monkeypatch.setattr(kernel_watch, "WORKER", script)
    found = kernel_watch.watched([], seconds=30, stall=2)
    assert [line["verdict"] for line in found] == ["ok", "failed", "ok"]
    assert "hung" in found[1]["reason"]
    late = kernel_watch.watched([], seconds=1, stall=20)
    assert [line["verdict"] for line in late[-2:]] == ["not run", "not run"]


def test_after_some_crashes_the_rest_is_left(module, monkeypatch):
    script = module("crashing_check", """
        import json, os, sys
        print(json.dumps({"started": int(sys.argv[-1]), "case": sys.argv[-1]}), flush=True)
        os.abort()
    """)  # fmt: skip
    monkeypatch.setattr(kernel_watch, "WORKER", script)
    *crashes, rest = kernel_watch.watched([], seconds=30, stall=20)
    assert [line["number"] for line in crashes] == [*range(kernel_watch.MOST_DEATHS)]
    assert all(line["verdict"] == "failed" and "SIGABRT" in line["reason"] for line in crashes)
    assert rest["verdict"] == "not run" and "died" in rest["reason"]


def test_a_process_that_cannot_start_is_told_once(monkeypatch):
    monkeypatch.setattr(kernel_watch, "WORKER", "bench.there_is_no_such_module")
    (only,) = kernel_watch.watched([], seconds=30, stall=20)
    assert only["verdict"] == "failed" and "no_such_module" in only["reason"]


def test_what_crashes_at_the_timed_shape_is_not_timed():
    names = {"lowrank_dot": ["fast", "reference"], "rank_update": ["fast", "small", "reference"]}
    fails = {"verdict": "failed", "reason": "hung"}
    cases = {
        "lowrank_dot fast": [{"case": f"{PAPER.name}, normal", **fails}],
        "rank_update small": [{"case": "tiny", **fails}, {"case": f"{PAPER.name}, normal", "verdict": "ok"}],
        "rank_update fast": [{"case": f"{PAPER.name}, normal", "verdict": "failed", "stage": "compile"}],
    }
    assert gpu_check.usable(names, cases) == ["reference", "small"]
    everything = {"rank_update reference": [{"case": "all", **fails}]}
    assert gpu_check.usable({"rank_update": ["reference"]}, everything) == ["reference"]


@pytest.mark.parametrize("steps", [FULL, QUICK])
def test_the_steps_are_what_the_scripts_take(steps):
    """Every module has options of these names; the names of steps and networks are there.

    That they run, the tests of each module say, whose quick runs are those of `QUICK`.
    """
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        options = importlib.import_module(step.module).Options
        parsed = tyro.cli(options, args=list(step.arguments))
        assert parsed.out is None
        assert set(getattr(parsed, "networks", ())) <= set(NETWORKS)
    if steps is FULL:
        assert gpu_check.parsed([]).seconds + 20 <= 8 * 60  # the rest is for installing
