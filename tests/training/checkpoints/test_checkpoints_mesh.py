"""What one mesh saved another restores; several processes save one checkpoint."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def start(module: str, *arguments, devices: int) -> subprocess.Popen:
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-m", f"tests.training.{module}", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_any_mesh_restores_what_any_other_saved(tmp_path):
    process = start("checkpoint_mesh", tmp_path, devices=8)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (0, "50\n"), err


@pytest.mark.slow
def test_two_processes_save_and_choose_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start("checkpoint_processes", tmp_path, port, 2, index, devices=2) for index in range(2)]
    try:
        ends = [(process, *process.communicate(timeout=120)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, out, _ in ends:
        assert process.returncode == 0 and out.endswith("done\n"), [err for _, _, err in ends]
