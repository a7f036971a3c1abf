"""Generation on a mesh of four simulated devices, each of which ends when its own members have."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, numpy as np
from eggroll.llm.answers.generation import generate, population_fit
from eggroll.llm.answers.decoding import generator
from tests.llm import truth

mesh = jax.make_mesh((4,), ("population",))
graphdef, params = truth.model()
fun, prompts = generator(graphdef, truth.ENDING), truth.prompts()
answers = [
    generate(members, fun, prompts)
    for members in (truth.ask(params, population=8), truth.ask(params, population=8, mesh=mesh))
]
assert population_fit(truth.ask(params, population=8, mesh=mesh), fun, prompts).members == 2
assert len(answers[1].tokens.sharding.device_set) == 4
for alone, spread in zip(*answers):
    assert np.array_equal(alone, spread)
longest = answers[1].length.reshape(4, -1).max(1)
assert len(set(longest.tolist())) > 1, longest
print("alike")
"""


@pytest.mark.slow
def test_devices_end_one_by_one_and_write_what_one_device_writes():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0 and done.stdout.strip() == "alike", done.stderr[-3000:]
