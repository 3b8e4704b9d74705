# none
import jax.numpy as jnp

import liftax as nn


class Local(nn.Module):
    """Looks at one position before."""

    @nn.compact
    def __call__(self, x):
        before = jnp.pad(x, ((1, 0), (0, 0)))[:-1]
        return x + nn.Dense(x.shape[-1], name="local")(before)


class Global(nn.Module):
    """Looks at the mean of all positions before."""

    @nn.compact
    def __call__(self, x):
        mean = jnp.cumsum(x, 0) / jnp.arange(1, len(x) + 1)[:, None]
        return x + nn.Dense(x.shape[-1], name="global")(mean)


def decoder(repeats, remainder, run):
    return nn.Stack(
        [Local()] * 5 + [Global()], repeats=repeats, after=[Local()] * remainder, run=run
    )


def Trained(repeats, remainder):
    return decoder(repeats, remainder, "scan")


def Decoding(repeats, remainder):
    return Trained(repeats, remainder).clone(run="loop")
