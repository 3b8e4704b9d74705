"""Hugging Face's names: small files made by hand, there and back; and, where it is installed,
the models of transformers at random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import liftax as nn
from examples import gemma3, gpt2, llama
from liftax.checkpoint.names import table, tables
from liftax.cli import main

pytestmark = pytest.mark.usefixtures("compiled_quickly")

V, W, DEPTH = 5, 8, 2  # words, width, layers


def of_gpt2():
    block = {
        **{f"{n}.{p}": (W,) for n in ("ln_1", "ln_2") for p in ("weight", "bias")},
        "attn.c_attn.weight": (W, 3 * W),
        "attn.c_attn.bias": (3 * W,),
        "attn.c_proj.weight": (W, W),
        "attn.c_proj.bias": (W,),
        "mlp.c_fc.weight": (W, 4 * W),
        "mlp.c_fc.bias": (4 * W,),
        "mlp.c_proj.weight": (4 * W, W),
        "mlp.c_proj.bias": (W,),
    }
    top = {"wte.weight": (V, W), "wpe.weight": (6, W), "ln_f.weight": (W,), "ln_f.bias": (W,)}
    every = {f"h.{i}.{n}": s for i in range(DEPTH) for n, s in block.items()}
    return {f"transformer.{n}": s for n, s in {**top, **every}.items()}


def of_llama(
    norms=(), *, bias=False, head=True, size=2, heads=4, kv_heads=2, hidden=16, depth=DEPTH
):
    block = {
        "self_attn.q_proj.weight": (heads * size, W),
        "self_attn.k_proj.weight": (kv_heads * size, W),
        "self_attn.v_proj.weight": (kv_heads * size, W),
        "self_attn.o_proj.weight": (W, heads * size),
        "mlp.gate_proj.weight": (hidden, W),
        "mlp.up_proj.weight": (hidden, W),
        "mlp.down_proj.weight": (W, hidden),
        "input_layernorm.weight": (W,),
        "post_attention_layernorm.weight": (W,),
        **{f"self_attn.{n}_norm.weight": (size,) for n in norms if n in "qk"},
        **{f"{n}_layernorm.weight": (W,) for n in norms if n not in "qk"},
    }
    if bias:
        block |= {
            f"self_attn.{n}_proj.bias": (count * size,)
            for n, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        }
    made = {"model.embed_tokens.weight": (V, W), "model.norm.weight": (W,)}
    made |= {f"model.layers.{i}.{n}": s for i in range(depth) for n, s in block.items()}
    return made | ({"lm_head.weight": (V, W)} if head else {})


SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2}
AROUND = ("q", "k", "pre_feedforward", "post_feedforward")
MODELS = {
    "gpt2": ("gpt2", of_gpt2(), {"n_head": 2}, gpt2.GPT2(V, context=6, width=W, depth=DEPTH)),
    "llama": ("llama", of_llama(), SIZES, llama.Llama(V, W, 16, depth=DEPTH)),
    "qwen2": ("qwen", of_llama(bias=True), SIZES, llama.Llama(V, W, 16, depth=DEPTH, bias=True)),
    "qwen3": (
        "qwen",
        of_llama("qk", head=False),
        SIZES,
        llama.Llama(V, W, 16, depth=DEPTH, norms=True, tied=True),
    ),
    "gemma": (
        "gemma",
        of_llama(AROUND, head=False, size=8, hidden=4 * W, depth=7),
        SIZES,
        gemma3.Gemma3(V, W, repeats=1, remainder=1),
    ),
}
TOKENS = jnp.asarray([[1, 2, 3, 4]])


def written(folder, shapes, config, name="model.safetensors"):
    draw = np.random.default_rng(0)
    arrays = {n: draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(arrays, folder / name, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return arrays


@pytest.mark.parametrize("model", MODELS)
def test_there_and_back(tmp_path, capsys, model):
    """Our model takes what comes of their names; their file comes back to the last bit."""
    name, shapes, config, ours = MODELS[model]
    arrays = written(tmp_path / "theirs", shapes, config)
    target = tmp_path / "ours.safetensors"
    argv = ["convert", str(tmp_path / "theirs"), str(target), "--from-hf", name]
    assert main([*argv, "--layout", "layers"]) == 0
    layout = nn.stackings_of(ours, jax.random.key(0), TOKENS)
    like = jax.eval_shape(ours.init, jax.random.key(0), TOKENS)
    found = nn.load_checkpoint(target, layout=layout, form="stacked", like=like, verify=True)
    assert ours.apply(found, TOKENS).shape == (1, 4, V)
    back = tmp_path / "back.safetensors"
    assert main(["convert", str(target), str(back), "--to-hf", name]) == 0
    again = safetensors.numpy.load_file(back)
    assert again.keys() == arrays.keys()
    for key, array in arrays.items():
        # A norm that is stored less one comes back with the rounding of the sum.
        np.testing.assert_allclose(again[key], array, rtol=0, atol=2e-7)
    capsys.readouterr()


def test_stacked_at_once_and_from_shards(tmp_path, capsys):
    name, shapes, config, ours = MODELS["gpt2"]
    folder = tmp_path / "theirs"
    arrays = written(folder, shapes, config)
    (folder / "model.safetensors").unlink()
    places = {}
    for i, key in enumerate(arrays):
        places[key] = f"model-{i % 2}.safetensors"
    for file in {*places.values()}:
        part = {key: arrays[key] for key in arrays if places[key] == file}
        safetensors.numpy.save_file(part, folder / file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    target = tmp_path / "ours.safetensors"
    argv = ["convert", str(folder), str(target), "--from-hf", name, "--layout", "stacked"]
    assert main(argv) == 0
    found = nn.load_checkpoint(target)
    assert found["params"]["blocks"]["block_0"]["up"]["kernel"].shape == (DEPTH, W, 4 * W)
    assert ours.apply(found, TOKENS).shape == (1, 4, V)
    capsys.readouterr()
    index.write_text(json.dumps({"weight_map": {**places, "more": "model-0.safetensors"}}))
    assert main(argv) == 2
    assert "more is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, c: s.pop("transformer.ln_f.bias"), "transformer.ln_f.bias is missing"),
        (lambda s, c: s.pop("transformer.h.1.ln_1.bias"), "transformer.h.1.ln_1.bias is missing"),
        (lambda s, c: s.update({"transformer.h.0.more": (2,)}), "is not in the table 'gpt2'"),
        (lambda s, c: c.clear(), "'n_head' in a config.json"),
        (lambda s, c: c.update(n_head=3), "is not of 3 heads"),
        (lambda s, c: s.update({"transformer.h.0.attn.c_attn.bias": (7,)}), "not 3 alike"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, capsys, change, message):
    name, shapes, config, _ = MODELS["gpt2"]
    shapes, config = dict(shapes), dict(config)
    change(shapes, config)
    written(tmp_path / "theirs", shapes, config)
    argv = ["convert", str(tmp_path / "theirs"), str(tmp_path / "a.safetensors")]
    assert main([*argv, "--from-hf", name, "--layout", "layers"]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert not (tmp_path / "a.safetensors").exists()


def test_buffers_are_left_out_and_the_base_may_be(tmp_path):
    _, shapes, config, _ = MODELS["gpt2"]
    bare = {n.removeprefix("transformer."): s for n, s in shapes.items()}
    written(tmp_path / "theirs", {**bare, "h.0.attn.bias": (1, 1, 6, 6)}, config)
    target = tmp_path / "a.safetensors"
    argv = ["convert", str(tmp_path / "theirs"), str(target), "--from-hf", "gpt2"]
    assert main([*argv, "--layout", "layers"]) == 0


def test_the_tables_are_of_one_kind():
    for name in tables():
        rows = table(name).rows
        assert len({row.theirs for row in rows}) == len(rows)
        ours = [one for row in rows for one in row.ours]
        assert len(set(ours)) == len(ours)
        for row in rows:
            assert all(("{}" in row.theirs) == ("{}" in one) for one in row.ours)


def torch_models():
    import transformers as tf

    common = {
        "vocab_size": 29,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "attn_implementation": "eager",
    }
    gemma = {**common, "intermediate_size": 128, "num_hidden_layers": 8, "head_dim": 8}
    gemma |= {"query_pre_attn_scalar": 8, "sliding_window": 4, "sliding_window_pattern": 6}
    gpt = {"vocab_size": 29, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4}
    return {
        "gpt2": (
            tf.GPT2LMHeadModel(tf.GPT2Config(**gpt, attn_implementation="eager")),
            gpt2.GPT2(29, width=32, heads=4, depth=3),
        ),
        "llama": (tf.LlamaForCausalLM(tf.LlamaConfig(**common)), llama.Llama(29, depth=3)),
        "qwen2": (
            tf.Qwen2ForCausalLM(tf.Qwen2Config(**common)),
            llama.Llama(29, depth=3, bias=True),
        ),
        "qwen3": (
            tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, head_dim=8, tie_word_embeddings=True)),
            llama.Llama(29, depth=3, norms=True, tied=True),
        ),
        "gemma": (
            tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**gemma)),
            gemma3.Gemma3(29, repeats=1, remainder=2),
        ),
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_the_logits_of_transformers(tmp_path, model):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs, ours = torch_models()[model]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    tokens = np.arange(24).reshape(2, 12)
    wanted = theirs(torch.tensor(tokens)).logits.detach().numpy()
    target = tmp_path / "ours.safetensors"
    argv = ["convert", str(tmp_path / "theirs"), str(target), "--layout", "layers"]
    assert main([*argv, "--from-hf", MODELS[model][0]]) == 0
    layout = nn.stackings_of(ours, jax.random.key(0), jnp.asarray(tokens))
    variables = nn.load_checkpoint(target, layout=layout, form="stacked")
    found = ours.apply(variables, jnp.asarray(tokens))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    # And back: transformers reads what is written.
    back = tmp_path / "theirs" / "model.safetensors"
    assert main(["convert", str(target), str(back), "--to-hf", MODELS[model][0]]) == 0
    again = type(theirs).from_pretrained(tmp_path / "theirs", attn_implementation="eager").eval()
    np.testing.assert_allclose(again(torch.tensor(tokens)).logits.detach(), wanted, atol=1e-5)
