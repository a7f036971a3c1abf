"""A folder takes one run at a time."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from eggroll.training.errors import RunError
from eggroll.training.folder import files as lock
from eggroll.training.folder.files import FolderLock

HOLD = """
import sys
from pathlib import Path
from eggroll.training.folder.files import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(folder):
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_run_is_refused_until_the_first_ends_or_is_killed(tmp_path):
    folder = tmp_path / "runs" / "x"
    with another_process(folder) as process:
        with pytest.raises(RunError) as caught, FolderLock(folder):
            pass
        said = rf"'{re.escape(str(folder))}' is in use by process {process.pid} on .+ since \d{{4}}-\d\d-\d\d .*: "
        assert re.match(said, str(caught.value)), caught.value
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with FolderLock(folder):
            pass
    with FolderLock(folder):
        pass


def test_a_second_run_of_the_same_process_is_refused(tmp_path):
    held = FolderLock(tmp_path)
    with held:
        with pytest.raises(RunError, match=f"in use by process {os.getpid()} on"), FolderLock(tmp_path):
            pass
        with pytest.raises(RunError, match="already"), held:
            pass
        with FolderLock(tmp_path / "other"):
            pass
        # The refused ones have not let go of it.
        with pytest.raises(RunError, match="in use"), FolderLock(tmp_path):
            pass
    with held:
        pass


def test_an_error_inside_lets_go(tmp_path):
    with pytest.raises(KeyError), FolderLock(tmp_path):
        raise KeyError
    with FolderLock(tmp_path):
        pass


def test_the_lock_file_is_not_the_lock(tmp_path):
    (tmp_path / lock.LOCK).write_text("process 1 on elsewhere since yesterday\n" * 9)
    with FolderLock(tmp_path):
        text = (tmp_path / lock.LOCK).read_text()
    assert text.startswith(f"process {os.getpid()} on") and text.count("\n") == 1


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"file/run' cannot be written: Not a directory"),
        FolderLock(tmp_path / "file" / "run"),
    ):
        pass


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOLCK, "cannot be locked: No locks available"), (errno.EAGAIN, "in use by another")]
)
def test_what_the_system_says(tmp_path, monkeypatch, number, message):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(RunError, match=message), FolderLock(tmp_path):
        pass
    assert not before or len(os.listdir("/proc/self/fd")) == before, "the file stays open"


def test_without_locks_a_warning_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with pytest.warns(UserWarning, match="nothing keeps a second run out"), FolderLock(tmp_path):
        pass


FORK = """
import os, signal, sys
from pathlib import Path
from eggroll.training.folder.files import FolderLock
with FolderLock(Path(sys.argv[1])):
    if os.fork() == 0:
        print("forked", flush=True)
        sys.stdin.read()  # a worker that outlives the run
        os._exit(0)
    signal.pause()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_that_outlives_the_run_does_not_hold_its_lock(tmp_path):
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "forked\n"
        with pytest.raises(RunError, match=f"in use by process {process.pid}"), FolderLock(tmp_path):
            pass
        process.kill()
        process.wait()
        with FolderLock(tmp_path):
            pass
        process.stdin.close()  # ends the worker
