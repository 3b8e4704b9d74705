"""The models in examples/: each in all three ways, checked equal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.interpret import interpret
from stack.blocks import equal, same

import liftax as nn
from examples import gemma3, gemma4, gpt2, llama, lstm, vit
from liftax.stack.storage import by_layers

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 11)

MODELS = {
    "gpt2": (gpt2.GPT2(11, context=9, width=8), gpt2.loss, (TOKENS,), "blocks"),
    "gemma3": (gemma3.Gemma3(11, width=8, remainder=1), gemma3.loss, (TOKENS,), "blocks"),
    "llama": (
        llama.Llama(11, width=8, hidden=8, heads=2, kv_heads=1, depth=2, bias=True, norms=True),
        llama.loss,
        (TOKENS,),
        "blocks",
    ),
    "vit": (
        vit.ViT(width=8, heads=2),
        vit.loss,
        (jax.random.uniform(KEY, (2, 8, 8)), jnp.asarray([3, 4])),
        "encoder",
    ),
    "lstm": (lstm.DeepLSTM(width=4), lstm.loss, (TOKENS % 2,), "Stack_0"),
}

# Small programs, compiled quickly rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def made(model, x):
    """Variables of the model's shapes, without compiling its initializers."""
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, KEY, x)
    return jax.tree.map(lambda s: jnp.asarray(draw.normal(size=s.shape) * 0.3, s.dtype), shapes)


def grads(model, loss, variables, args):
    def of(variables):
        return loss(model, variables, *args)

    return jax.jit(jax.value_and_grad(of), compiler_options=QUICK)(variables)


@pytest.mark.parametrize("name", MODELS)
def test_three_ways(name):
    """Scanned, in groups, and written out over one subtree a layer: one loss, one gradient."""
    model, loss, args, stack = MODELS[name]
    variables = made(model, args[0])
    value, slopes = grads(model, loss, variables, args)
    groups = model.clone(run="scan of 2", remat=nn.Remat(every=2))
    shapes = jax.eval_shape(groups.init, KEY, args[0])
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    same(grads(groups, loss, variables, args), (value, slopes), rtol=2e-3, atol=1e-5)

    (at,) = (s for s in nn.stack_layouts(model, KEY, args[0]) if s.path == (stack,))

    def apart(params):
        return {**params, stack: by_layers({"params": params[stack]}, at)["params"]}

    written_out = model.clone(run="loop", store="layers")
    found = grads(written_out, loss, {"params": apart(variables["params"])}, args)
    same(found, (value, {"params": apart(slopes["params"])}), rtol=2e-3, atol=1e-5)


def test_gpt2_decodes_written_out_what_it_was_trained_for_scanned():
    model = MODELS["gpt2"][0]
    variables = made(model, TOKENS)
    tokens = TOKENS[:, :3]
    for _ in range(3):
        logits = model.apply(variables, tokens)
        tokens = jnp.concatenate([tokens, logits[:, -1:].argmax(-1)], 1)
    found = gpt2.generate(model.clone(run="loop"), variables, TOKENS[:, :3], 6)
    np.testing.assert_array_equal(found, tokens)


def test_gemma3_decodes_with_caches_of_two_sizes():
    model = MODELS["gemma3"][0].clone(repeats=1)
    variables = made(model, TOKENS)
    cache = model.empty_cache(2, 9)
    assert [part["k"].shape[2] for part in cache.block] == [4, 4, 4, 4, 4, 9]
    logits = gemma3.decode(model.clone(run="loop"), variables, TOKENS)
    same(logits, model.apply(variables, TOKENS), rtol=1e-3, atol=1e-4)


GEMMA4 = gemma4.Gemma4(11, width=8, embedded=4, locals=1, shares=2)


def test_gemma4_is_a_loop_over_its_layers():
    """Operation by operation, scanned it is to the bit what its layers are one by one."""
    variables = made(GEMMA4, TOKENS)
    found = interpret(functools.partial(GEMMA4.apply, tokens=TOKENS), variables)
    equal(found, interpret(functools.partial(gemma4.written_out, GEMMA4, tokens=TOKENS), variables))


def test_gemma4_decodes_with_caches_of_the_layers_that_make():
    variables = made(GEMMA4, TOKENS)
    cache = GEMMA4.empty_cache(2, 9)
    assert [part["k"].shape[:3] for part in cache.block] == [(2, 2, 4), (2, 2, 9)]
    logits = gemma4.decode(GEMMA4, variables, TOKENS)
    expected = jax.jit(GEMMA4.apply, compiler_options=QUICK)(variables, TOKENS)
    same(logits, expected, rtol=1e-3, atol=1e-4)


def test_gemma4_drawn():
    """Only the layers that make keys and values have kernels for them."""
    text = str(nn.layout(GEMMA4, KEY, TOKENS))
    assert "making" in text and "sharing" in text
    params = jax.eval_shape(GEMMA4.init, KEY, TOKENS)["params"]
    assert sorted(params["making"]["block_1"]["attention"]) == [
        "k", "k_norm", "out", "q", "q_norm", "v",
    ]  # fmt: skip
    assert sorted(params["sharing"]["block_1"]["attention"]) == ["out", "q", "q_norm"]


def test_vit_skips_layers_alike():
    model, loss, args, _ = MODELS["vit"]
    model = model.clone(skip=0.5)
    variables = made(model, args[0])
    values = [
        loss(model.clone(run=run), variables, *args, rngs={"dropout": KEY})
        for run in ("scan", "loop")
    ]
    np.testing.assert_allclose(*values, rtol=1e-5)
    assert abs(values[0] - loss(model, variables, *args)) > 1e-4
