"""Settings that every test runs under."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import settings

# A library that mixes dtypes implicitly fails here, not in a user's bfloat16 model.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Where tests run in the background of a shell, Ctrl-C is ignored, which processes hand on to those that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The interpreter of GPU kernels blocks a thread of XLA's pool for each warpgroup that waits: two cores give it two.
os.environ.setdefault("NPROC", "8")

# Every example compiles, so time per example says nothing, and each is dear. CI must not depend on luck.
EXAMPLES = int(os.environ.get("EGGROLL_TEST_EXAMPLES", "8"))
settings.register_profile("eggroll", deadline=None, max_examples=EXAMPLES, derandomize="CI" in os.environ)
settings.load_profile("eggroll")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `gpu` or `tpu` where JAX has no such device."""
    for platform in ("gpu", "tpu"):
        if item.get_closest_marker(platform) and jax.default_backend() != platform:
            pytest.skip(f"needs a {platform.upper()}, JAX runs on {jax.default_backend()} here")


@pytest.fixture(scope="session", autouse=True)
def own_checkout() -> Iterator[None]:
    """What was tested is this checkout, and no other one that happens to be installed."""
    yield
    root = Path(__file__).resolve().parents[1]
    loaded = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "eggroll"}
    foreign = {name: file for name, file in loaded.items() if file and root not in Path(file).resolve().parents}
    assert not foreign, f"imported from elsewhere than {root}: {foreign}"
