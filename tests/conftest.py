"""Settings of the whole suite. This file runs before any test module imports jax."""

import gc
import os
import shutil
import tempfile

import hypothesis
import pytest

# Python looks at all that is new after 700 objects, and at everything after a hundred times that:
# one trace makes more. Rarer, collections take 2 of 100 seconds instead of 7; tests that count what
# is left collect for themselves.
gc.set_threshold(10_000, 10, 10)

# Sharding is tested on eight devices, parity to the last bit on the CPU. Half of the suite is
# compiling, so LLVM takes less pains: a draw of keys compiles in less than half of the time. And it
# is given a program whole, where XLA would take one apart for a pool of threads: both cores have
# tests to run. The emitters that write a fusion by way of MLIR take as long as all else does that
# compiles one, so the ones before them do it; JAX 0.12 no longer has those, and passes over the
# option. What XLA itself makes of a program, its fusions, copies and buffers, stays as it is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=1",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
    ]
)

# Which lines of Python an operation comes from is nothing that a test reads in compiled code, and
# pytest has sixty of them on its stack.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# What one test compiled is read by the next, by the other worker and by the processes that tests
# start. A program is found by its content, its options and the compiler, so no bit changes. The
# folder is made by the first process and is gone with it, unless one is given: workers inherit it.
OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    OWN_CACHE = tempfile.mkdtemp(prefix="liftax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = OWN_CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Compiling takes as long as it takes: no deadline. In CI the same examples every time.
hypothesis.settings.register_profile(
    "liftax",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("liftax")


def pytest_collection_modifyitems(items):
    """Modules that take long come first: at the end one worker would wait for the other's last."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Modules and tests stay to the end: no collection needs to go through them again."""
    gc.freeze()


def pytest_unconfigure():
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="module")
def compiled_quickly():
    """LLVM optimises nothing: for modules that compare to rounding, or run their programs once."""
    from helpers.quick import quickly

    with quickly():
        yield


@pytest.fixture(params=[False, True], ids=["remat", "remat3"])
def remat3(request):
    """JAX's `checkpoint` and `checkpoint_name`, in both ways that it has to write them down."""
    import jax

    before = jax.config.jax_remat3
    jax.config.update("jax_remat3", request.param)
    yield request.param
    jax.config.update("jax_remat3", before)
