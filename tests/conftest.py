"""Settings of the whole suite. This file runs before any test module imports jax."""

import os

# Sharding is tested on eight devices, parity to the last bit on the CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()

import hypothesis
import pytest

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


@pytest.fixture(params=[False, True], ids=["remat", "remat3"])
def remat3(request):
    """JAX's `checkpoint` and `checkpoint_name`, in both ways that it has to write them down."""
    import jax

    before = jax.config.jax_remat3
    jax.config.update("jax_remat3", request.param)
    yield request.param
    jax.config.update("jax_remat3", before)
