"""Settings that every test runs under."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings

# Compiling is what the tests cost. What one run has compiled the next one reads, and so do the processes that tests
# start. Optimisations make results no truer, and are half of what compiling takes: `optimised` tests have them.
VERSIONS = f"python-{sys.version_info[0]}.{sys.version_info[1]}-jax-{version('jax')}-jaxlib-{version('jaxlib')}"
TESTS = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "eggroll-tests" / VERSIONS
COMPILING = {
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",  # of what is compiled, nobody reads where it was written
}
for name, value in COMPILING.items():
    os.environ.setdefault(name, value)

# A process that is killed can leave half an entry, for ever: those of `killing` tests share a cache of this run's own,
# which its first process makes and removes.
OF_THIS_RUN = "EGGROLL_TEST_CACHE_OF_THIS_RUN"
if OF_THIS_RUN not in os.environ:
    SCRATCH = tempfile.TemporaryDirectory(prefix="eggroll-tests-", ignore_cleanup_errors=True)
    os.environ[OF_THIS_RUN] = SCRATCH.name

# The interpreter of GPU kernels blocks a thread of XLA's pool for each warpgroup that waits: two cores give it two.
os.environ.setdefault("NPROC", "8")

USUAL = os.environ["JAX_COMPILATION_CACHE_DIR"]

import jax  # noqa: E402  reads the variables above
from jax._src import compiler  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402
from jax.experimental.compilation_cache.compilation_cache import reset_cache  # noqa: E402

# A library that mixes dtypes implicitly fails here, not in a user's bfloat16 model.
jax.config.update("jax_numpy_dtype_promotion", "strict")

if not hasattr(mlir, "_thread_local_context"):
    # To make MLIR's context takes as long as to lower a small program: JAX 0.12 lowers ten in one, an older JAX here.
    make_ir_context, kept = mlir.make_ir_context, threading.local()

    def reused_context() -> object:
        if mlir.ir.Context.current is not None:  # inside another lowering, where what is made would be put into that
            return make_ir_context()
        number = getattr(kept, "number", 0)
        if number % 10 == 0:
            kept.context = make_ir_context()
        kept.number = number + 1
        return kept.context

    mlir.make_ir_context = reused_context

    # The emitters of fusions that it has by default are two fifths of what compiling without optimisations takes. The
    # default run does without; slow tests compare bits with processes that have them.
    get_compile_options = compiler.get_compile_options

    def with_older_emitters(*args: object, **options: object) -> object:
        found = get_compile_options(*args, **options)
        if DEFAULT_RUN and jax.config.values["jax_disable_most_optimizations"]:
            older = [("xla_cpu_use_fusion_emitters", False)]
            found.env_option_overrides = [*found.env_option_overrides, *older]
        return found

    compiler.get_compile_options = with_older_emitters

# Where tests run in the background of a shell, Ctrl-C is ignored, which processes hand on to those that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Every example compiles, so time per example says nothing, and each is dear. The same examples in every run: a failure
# is no luck, and the shapes are compiled already. EGGROLL_TEST_EXAMPLES asks for more of them.
EXAMPLES = int(os.environ.get("EGGROLL_TEST_EXAMPLES", "6"))
settings.register_profile("eggroll", deadline=None, max_examples=EXAMPLES, derandomize=True, database=None)
settings.load_profile("eggroll")


DEFAULT_RUN = True


def pytest_configure(config: pytest.Config) -> None:
    """Knows which run this is."""
    global DEFAULT_RUN
    DEFAULT_RUN = config.getoption("markexpr") == "not slow"


# What takes a minute or more: begun first, so that no process is left with it at the end.
LONG = (
    *("training/processes/test_processes_fit.py", "cli/test_killing.py", "cli/test_finetune.py"),
    *("training/processes/test_processes_runs.py", "cli/test_main_job.py", "strategy/mesh/test_sharded_runs.py"),
    *("cli/test_finetune_learning.py", "llm/finetuning/test_learning.py", "llm/answers/test_writing.py"),
    *("bench/test_gpu_check.py", "bench/test_finetune.py", "bench/test_memory.py", "bench/test_scaling.py"),
)


# Importing makes millions of objects that live to the end: nothing is garbage yet, and later nobody need look there.
gc.disable()


def pytest_collection_finish() -> None:
    """Collects garbage from here on, among what tests make: rarely, for what a compiled function holds is much."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what of a test's cases comes after the first ones that its mark `first` asks for.

    Long files come first, then tests that compile in the same way one after the other, for what was compiled is
    forgotten in between.
    """
    files = {TESTS / file: number for number, file in enumerate(LONG)}
    items.sort(key=lambda item: (files.get(item.path, len(LONG)), compiling(item)))
    seen: Counter[str] = Counter()
    for item in items:
        first = item.get_closest_marker("first")
        if first is not None and not item.get_closest_marker("slow"):
            test = item.nodeid.split("[")[0]
            seen[test] += 1
            if seen[test] > first.args[0]:
                item.add_marker(pytest.mark.slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test for a device that is not there, and compiles as the test's marks say."""
    for platform in ("gpu", "tpu"):
        if item.get_closest_marker(platform) and jax.default_backend() != platform:
            pytest.skip(f"needs a {platform.upper()}, JAX runs on {jax.default_backend()} here")
    compile_with(*compiling(item))


def compiling(item: pytest.Item) -> tuple[bool, bool, bool]:
    """Whether a test compiles with optimisations, whether without a cache on disk, and whether with this run's own."""
    marked = {mark.name for mark in item.iter_markers()}
    return bool(marked & {"optimised", "measured"}), "measured" in marked, "killing" in marked


def compile_with(optimisations: bool, measured: bool, killing: bool) -> None:
    """Sets how JAX compiles, in this process and in those that it starts; what was compiled otherwise is forgotten."""
    wanted = {
        "jax_disable_most_optimizations": not optimisations,
        "jax_enable_compilation_cache": not measured,
        "jax_compilation_cache_dir": os.environ[OF_THIS_RUN] if killing else USUAL,
    }
    if all(jax.config.values[name] == value for name, value in wanted.items()):
        return
    for name, value in wanted.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value).lower() if isinstance(value, bool) else value
    reset_cache()  # whether there is one is asked once
    jax.clear_caches()  # neither setting is part of what JAX looks compiled functions up by


@pytest.fixture(scope="session", autouse=True)
def own_checkout() -> Iterator[None]:
    """What was tested is this checkout, and no other one that happens to be installed."""
    yield
    root = Path(__file__).resolve().parents[1]
    loaded = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "eggroll"}
    foreign = {name: file for name, file in loaded.items() if file and root not in Path(file).resolve().parents}
    assert not foreign, f"imported from elsewhere than {root}: {foreign}"
