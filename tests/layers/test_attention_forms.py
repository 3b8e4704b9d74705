"""The forms of a call of attention: what Linen warns of is warned of, and heard the same."""

import warnings

import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest

import liftax

KEY = jax.random.key(0)
X, LONGER = jnp.ones((1, 4, 4)), jnp.ones((1, 5, 4))
MASK = jnp.ones((1, 1, 4, 4))

FORMS = {
    "self": ((X,), {}),
    "keys": ((X, LONGER), {}),
    "keys and values": ((X, LONGER, LONGER), {}),
    "keys by name": ((X,), {"inputs_k": LONGER}),
    "square keys": ((X, X), {}),
    "square values": ((X, X, X), {}),
    "square values by name": ((X,), {"inputs_k": X, "inputs_v": X}),
    "mask by name": ((X, LONGER, LONGER), {"mask": jnp.ones((1, 1, 4, 5))}),
    "both": ((X,), {"inputs_kv": LONGER}),
    "square both": ((X,), {"inputs_kv": X}),
    "both twice": ((X,), {"inputs_kv": LONGER, "inputs_k": LONGER}),
    "square values alone": ((X, None, X), {}),
}


def outcome(nn, layer, args, kwargs):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            getattr(nn, layer)(num_heads=2).init(KEY, *args, **kwargs)
            error = None
        except Exception as caught:
            error = next(t for t in (ValueError, Exception) if isinstance(caught, t))
    return [warning.category for warning in told], error


@pytest.mark.parametrize("layer", ["MultiHeadDotProductAttention", "MultiHeadAttention"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_deprecated(layer, form):
    assert outcome(liftax, layer, *FORMS[form]) == outcome(linen, layer, *FORMS[form])


@pytest.mark.parametrize("args", [(X,), (X, MASK)], ids=["plain", "mask"])
def test_self_attention_is_deprecated(args):
    found = outcome(liftax, "SelfAttention", args, {})
    assert found == outcome(linen, "SelfAttention", args, {}) == ([DeprecationWarning], None)


class Outer(liftax.Module):
    @liftax.compact
    def __call__(self, x):
        return liftax.MultiHeadDotProductAttention(num_heads=2, name="attend")(x, inputs_kv=x)


def test_the_warning_names_the_layer_and_the_change():
    expected = (
        "^module /attend: MultiHeadDotProductAttention: inputs_kv= is deprecated.\nPass inputs_k="
    )
    with pytest.warns(DeprecationWarning, match=expected):
        Outer().init(KEY, X)


def heard(nn, decode):
    log = []

    def note(call, args, kwargs, context):
        log.append((type(context.module).__name__, context.method_name))
        return call(*args, **kwargs)

    model = nn.MultiHeadDotProductAttention(num_heads=2, decode=decode)
    variables = model.init(KEY, X)
    with nn.intercept_methods(note):
        model.apply(variables, X[:, :1] if decode else X, mutable=["cache"])
    return log


@pytest.mark.parametrize("decode", [False, True])
def test_interceptors_hear_the_layers(decode):
    assert heard(liftax, decode) == heard(linen, decode)
