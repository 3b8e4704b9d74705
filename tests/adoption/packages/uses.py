"""Real packages as their users use them: one function a package, named as the package is.

`python uses.py NAME` runs one and prints a line for each tree of arrays: what it is, how many
arrays, a hash of all paths, shapes, dtypes and bits. With flax in one process and with liftax in
its place in another, the lines are the same; see tools/adoption.py.
"""

import functools
import hashlib
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)
KEYS = {"params": KEY, "dropout": jax.random.key(1)}


def array(*shape):
    """Numbers that look random and are the same everywhere."""
    return jnp.asarray(np.sin(np.arange(np.prod(shape))).reshape(shape), jnp.float32)


def show(what, tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    digest = hashlib.sha256()
    for path, leaf in leaves:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        value = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {value.shape} {value.dtype}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    print(f"{what}: {len(leaves)} arrays {digest.hexdigest()[:16]}", flush=True)


def show_model(module, *args, rngs=KEYS, mutable=False, method=None, **kwargs):
    """Variables, outputs, gradients and changed collections of a module."""
    name = type(module).__name__
    options = {"method": method, **kwargs}
    # Keys and inputs are arguments: XLA takes minutes to fold what it can compute of constants.
    variables = jax.jit(lambda rngs, args: module.init(rngs, *args, **options))(rngs, args)
    show(f"{name} variables", variables)

    def loss(params, rest, rngs, args):
        out = module.apply({**rest, "params": params}, *args, rngs=rngs, mutable=mutable, **options)
        floats = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return sum(jnp.sum(jnp.abs(jnp.asarray(x)).astype(jnp.float32) ** 2) for x in floats), out

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, out), grads = grad(variables["params"], rest, rngs, args)
    show(f"{name} outputs", out)
    show(f"{name} gradients", grads)
    return variables


def brax():
    from brax.training import networks
    from brax.training.agents.ppo import networks as ppo

    x = array(4, 6)
    show_model(networks.MLP((8, 3), layer_norm=True, activate_final=True), x)
    show_model(networks.SNMLP((8, 3)), x, mutable=["sing_vec"])
    lecun = jax.nn.initializers.lecun_uniform()
    show_model(networks.DistributionalCritic((8, 8), jax.nn.relu, lecun, 4), x)
    show_model(
        networks.VisionMLP((8, 3), normalise_channels=True), {"pixels/a": array(2, 48, 48, 3)}
    )
    made = ppo.make_ppo_networks(6, 2, policy_hidden_layer_sizes=(8, 8))
    show("ppo policy", made.policy_network.init(KEY))
    show("ppo value", made.value_network.init(KEY))


def e3x():
    import e3x

    x, r = array(3, 1, 1, 4), array(4, 3)
    basis = e3x.nn.basis(
        r, max_degree=2, num=5, radial_fn=e3x.nn.reciprocal_bernstein,
        cutoff_fn=functools.partial(e3x.nn.smooth_cutoff, cutoff=3.0),
    )  # fmt: skip
    dst, src = jnp.array([0, 1, 2, 0]), jnp.array([1, 2, 0, 2])
    pairs = {"dst_idx": dst, "src_idx": src, "num_segments": 3}
    show_model(e3x.nn.Embed(5, 4), jnp.array([1, 2, 4]))
    show_model(e3x.nn.MessagePass(max_degree=2), x, basis, **pairs)
    show_model(e3x.nn.TensorDense(4, max_degree=2), array(3, 2, 9, 4))
    show_model(e3x.nn.SelfAttention(max_degree=1, num_heads=2), x, basis, **pairs)


def netket():
    import netket as nk

    spins = jnp.asarray(np.where(np.sin(np.arange(32.0)).reshape(4, 8) > 0, 1.0, -1.0))
    hilbert = nk.hilbert.Spin(0.5, 8)
    show_model(nk.models.RBM(alpha=2), spins)
    show_model(nk.models.RBMModPhase(alpha=1), spins)
    show_model(nk.models.RBMMultiVal(n_classes=3, alpha=1), jnp.abs(spins))
    show_model(nk.models.Jastrow(), spins)
    show_model(nk.models.NDM(), array(4, 16))
    show_model(nk.models.MLP(hidden_dims=(8,), output_activation=nk.nn.log_cosh), spins)
    graph = nk.graph.Chain(8)
    show_model(nk.models.GCNN(symmetries=graph, layers=2, features=(2, 2)), spins)
    for made in (nk.models.ARNNDense, nk.models.ARNNConv1D):
        kwargs = {"kernel_size": 3} if "Conv" in made.__name__ else {}
        module = made(hilbert=hilbert, layers=2, features=4, **kwargs)
        state = nk.vqs.MCState(nk.sampler.ARDirectSampler(hilbert), module, n_samples=16, seed=1)
        show(f"{made.__name__} samples", (state.samples, state.variables))
    hamiltonian = nk.operator.Ising(hilbert, graph, h=1.0)
    sampler = nk.sampler.MetropolisLocal(hilbert, n_chains=4)
    state = nk.vqs.MCState(sampler, nk.models.RBM(), n_samples=32, seed=0, sampler_seed=0)
    driver = nk.driver.VMC(
        hamiltonian, nk.optimizer.Sgd(0.1), variational_state=state,
        preconditioner=nk.optimizer.SR(diag_shift=0.1),
    )  # fmt: skip
    driver.run(3, show_progress=False)
    show("VMC", state.variables)


def numpyro():
    import flax.linen as nn
    import numpyro
    from numpyro.contrib.module import flax_module, random_flax_module

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
            return nn.Dense(1)(nn.tanh(x))

    x, y = array(16, 3), array(16)

    def model(x, y):
        net = flax_module("net", Net(), input_shape=(16, 3), mutable=["batch_stats"])
        numpyro.sample("y", numpyro.distributions.Normal(net(x)[:, 0], 1.0), obs=y)

    def bayesian(x, y):
        net = random_flax_module(
            "net", nn.Dense(1), prior=numpyro.distributions.Normal(), input_shape=(3,)
        )
        numpyro.sample("y", numpyro.distributions.Normal(net(x)[:, 0], 1.0), obs=y)

    for made in (model, bayesian):
        guide = numpyro.infer.autoguide.AutoNormal(made)
        svi = numpyro.infer.SVI(
            made, guide, numpyro.optim.Adam(0.1), loss=numpyro.infer.Trace_ELBO()
        )
        state = svi.init(KEY, x, y)
        for _ in range(3):
            state, loss = svi.update(state, x, y)
        show(f"{made.__name__} after three steps", (svi.get_params(state), loss))
    kernel = numpyro.infer.NUTS(bayesian)
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=5, num_samples=5, progress_bar=False)
    mcmc.run(KEY, x, y)
    show("samples", mcmc.get_samples())


def flaxmodels():
    # Its StyleGAN2 and GPT-2 call jax.numpy by keywords that it has no longer.
    import flaxmodels as fm

    x = jnp.abs(array(1, 32, 32, 3))
    net = fm.ResNet18(output="logits", pretrained=None, num_classes=5)
    show_model(net, x, mutable=["batch_stats"])
    show_model(fm.VGG16(output="activations", pretrained=None, include_head=False), x, train=False)


def transformers():
    import transformers as tf

    tokens = jnp.arange(6).reshape(1, 6) % 11
    small = {
        "vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 16,
    }  # fmt: skip

    def run(model, *args, **kwargs):
        name = type(model).__name__
        show(f"{name} variables", model.params)

        def loss(params):
            out = model(*args, params=params, train=True, dropout_rng=KEY, **kwargs)
            return jnp.sum(out[0] ** 2), out.to_tuple()

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(model.params)
        show(f"{name} outputs", out)
        show(f"{name} gradients", grads)

    run(tf.FlaxBertModel(tf.BertConfig(**small)), tokens)
    run(
        tf.FlaxRobertaForMaskedLM(
            tf.RobertaConfig(**small), gradient_checkpointing=True, input_shape=(1, 6)
        ),
        tokens,
    )
    gpt2 = tf.FlaxGPT2LMHeadModel(
        tf.GPT2Config(vocab_size=16, n_embd=8, n_layer=2, n_head=2, n_positions=16)
    )
    run(gpt2, tokens)
    show("generated", gpt2.generate(tokens, max_length=10, pad_token_id=0).sequences)
    run(
        tf.FlaxLlamaForCausalLM(tf.LlamaConfig(**small, num_key_value_heads=2), input_shape=(1, 6)),
        tokens,
    )
    vit = tf.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4,
    )  # fmt: skip
    run(tf.FlaxViTModel(vit), array(1, 3, 8, 8))
    resnet = tf.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
    model = tf.FlaxResNetModel(resnet)
    show("FlaxResNetModel variables", model.params)
    show("FlaxResNetModel outputs", model(array(1, 3, 32, 32), train=True)[0].to_tuple())


def orbax():
    import flax.linen as nn
    import optax
    import orbax.checkpoint as ocp
    from flax import serialization
    from flax.training import orbax_utils, train_state

    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    model = nn.Sequential([nn.Dense(8, kernel_init=init), nn.BatchNorm(False), nn.Dense(2)])

    class TrainState(train_state.TrainState):
        batch_stats: object

    variables = model.init(KEYS, array(4, 3))
    state = TrainState.create(
        apply_fn=model.apply, params=variables["params"], tx=optax.adamw(0.1),
        batch_stats=variables["batch_stats"],
    )  # fmt: skip

    @jax.jit
    def step(state):
        def loss(params):
            given = {"params": params, "batch_stats": state.batch_stats}
            y, updates = state.apply_fn(given, array(4, 3), mutable=["batch_stats"])
            return (y**2).sum(), updates

        grads, updates = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=updates["batch_stats"])

    state = step(step(state))
    show("state", state)
    with tempfile.TemporaryDirectory() as folder:
        with ocp.StandardCheckpointer() as files:
            files.save(f"{folder}/standard", state)
            files.wait_until_finished()
            show("restored", files.restore(f"{folder}/standard", state))
        old = ocp.PyTreeCheckpointer()
        old.save(f"{folder}/old", state, save_args=orbax_utils.save_args_from_target(state))
        show("restored by the old one", old.restore(f"{folder}/old", item=state))
        with ocp.CheckpointManager(f"{folder}/manager") as manager:
            manager.save(1, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            show("of a manager", manager.restore(1, args=ocp.args.StandardRestore(state)))
    data = serialization.to_bytes(state)
    print("serialized", hashlib.sha256(data).hexdigest()[:16])
    show("from bytes", serialization.from_bytes(state, data))


def clu():
    import flax
    import flax.linen as nn
    from clu import metrics, parameter_overview

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(2)(x.reshape(x.shape[0], -1))

    variables = show_model(Net(), array(2, 8, 8, 3), mutable=["batch_stats"])
    print(parameter_overview.get_parameter_overview(variables))
    print(parameter_overview.get_parameter_overview(variables["params"], include_stats="sharding"))
    print(parameter_overview.count_parameters(variables["params"]))

    @flax.struct.dataclass
    class Metrics(metrics.Collection):
        accuracy: metrics.Accuracy
        loss: metrics.Average.from_output("loss")

    logits = Net().apply(variables, array(2, 8, 8, 3), mutable=["batch_stats"])[0]
    found = Metrics.single_from_model_output(
        logits=logits, labels=jnp.array([0, 1]), loss=jnp.array([1.0, 2.0])
    )
    show("metrics", found.merge(found).compute())


def aqtp():
    import flax.linen as nn
    from aqt.jax.v2 import config, utils
    from aqt.jax.v2.flax import aqt_flax

    def net(weights=utils.QuantMode.TRAIN):
        dot = functools.partial(
            aqt_flax.AqtDotGeneral, config.fully_quantized(fwd_bits=8, bwd_bits=8),
            rhs_quant_mode=weights, rhs_freeze_mode=aqt_flax.FreezerMode.CALIBRATION_AND_VALUE,
        )  # fmt: skip

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                block = nn.remat(nn.Dense)
                x = nn.relu(block(16, dot_general_cls=dot)(x))
                x = nn.Dense(8, dot_general_cls=dot)(x)
                kernel = self.param("kernel", nn.initializers.lecun_normal(), (8, 3))
                einsum = aqt_flax.AqtEinsum(config.config_v3(), name="einsum")
                return einsum("bi,ij->bj", x, kernel)

        return Net()

    keys = {**KEYS, "params": KEY}
    x = array(4, 6)
    variables = show_model(net(), x, rngs=keys, mutable=True)
    frozen = net(utils.QuantMode.CONVERT).apply(variables, x, rngs=keys, mutable=True)
    show("frozen", frozen)
    served = net(utils.QuantMode.SERVE).apply({**variables, **frozen[1]}, x, rngs=keys)
    show("served", served)

    # The operator under a scan over layers: its variables are stacked with the layers.
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            dot = functools.partial(aqt_flax.AqtDotGeneral, config.fully_quantized())
            return nn.tanh(nn.Dense(6, dot_general_cls=dot)(x)), None

    layers = nn.scan(Layer, variable_axes={True: 0}, split_rngs={"params": True}, length=3)
    show_model(layers(), x, None, rngs=keys)


def gemma():
    import dataclasses

    # kauldron, gemma's trainer, is imported for a few annotations and base classes. It asks for
    # tensorflow, which nothing here calls, and has renamed a class that gemma knows as before.
    sys.modules["tensorflow"] = mock.MagicMock(__spec__=None)
    from kauldron import kd

    kd.train = mock.MagicMock()
    kd.ckpts.AbstractPartialLoader = kd.ckpts.InitTransform

    from gemma import gm, peft

    whole = gm.nn.Gemma2_2B.config
    config = dataclasses.replace(
        whole, num_embed=32, embed_dim=16, hidden_dim=32, num_heads=2, head_dim=8, num_kv_heads=1,
        attention_types=whole.attention_types[:2], sliding_window_size=4,
    )  # fmt: skip
    model = gm.nn.Transformer(config=config, tokens="x", dtype=jnp.float32)
    tokens = jnp.arange(6).reshape(1, 6)
    show_model(model, tokens)
    lora = gm.nn.LoRA(rank=2, model=model)
    show_model(lora, tokens)
    original, added = peft.split_params(lora.init(KEY, tokens)["params"])
    show("split", (original, added))
    cache = model.init_cache(batch_size=1, dtype=jnp.float32, cache_length=8)
    show("cache", cache)
    variables = model.init(KEY, tokens)
    out = model.apply(
        variables, tokens[:, :1], cache=cache, positions=jnp.zeros((1, 1), jnp.int32),
        attention_mask=jnp.ones((1, 1, 8), bool),
    )  # fmt: skip
    show("decoded", (out.logits, out.cache))


def rejax():
    import rejax

    for name, options in {
        "ppo": {"num_envs": 4, "num_steps": 8, "num_minibatches": 2},
        "dqn": {"num_envs": 2, "buffer_size": 64, "fill_buffer": 16, "batch_size": 8},
    }.items():
        agent = rejax.get_algo(name).create(
            env="CartPole-v1",
            total_timesteps=64, eval_freq=32, skip_initial_evaluation=True,
            **options,
        )  # fmt: skip
        state, evaluated = jax.jit(jax.vmap(agent.train))(
            jax.random.split(jax.random.PRNGKey(0), 2)
        )
        show(f"{name} trained", (jax.tree.leaves(state), evaluated))


def ott_jax():
    import optax
    from ott.neural.networks import icnn, potentials

    x = array(4, 2)
    for module in (
        potentials.PotentialMLP(dim_hidden=[8, 8], is_potential=False),
        potentials.PotentialMLP(dim_hidden=[8, 8], is_potential=True),
        icnn.ICNN(dim_data=2, dim_hidden=[8, 8], pos_weights=True),
    ):
        show_model(module, x)
    state = potentials.PotentialMLP(dim_hidden=[8]).create_train_state(KEY, optax.adam(0.1), 2)
    show("state", state.params)


def jax_resnet():
    import jax_resnet as jr

    x = array(1, 32, 32, 3)
    show_model(jr.ResNet18(n_classes=4), x, mutable=["batch_stats"])
    block = jr.resnet.ResNeStBottleneckBlock(n_hidden=8)
    show_model(block, array(1, 8, 8, 8), mutable=["batch_stats"])


def evosax():
    from evosax.problems import networks

    x = array(4)
    show_model(networks.MLP(layer_sizes=(8, 2), output_fn=networks.tanh_output_fn), x)
    conv = networks.CNN((4,), ((3, 3),), ((1, 1),), (8, 2), output_fn=networks.identity_output_fn)
    show_model(conv, array(8, 8, 1))


def flaxdiff():
    from flaxdiff.models.simple_unet import Unet
    from flaxdiff.models.simple_vit import UViT

    x, t = array(1, 8, 8, 3), array(1)
    attention = {"heads": 2, "dtype": jnp.float32, "flash_attention": False,
                 "use_projection": False, "use_self_and_cross": False}  # fmt: skip
    unet = Unet(
        emb_features=16, feature_depths=[8, 8], attention_configs=[None, attention],
        num_res_blocks=1, num_middle_res_blocks=1, norm_groups=4,
    )  # fmt: skip
    show_model(unet, x, t, array(1, 4, 8))
    vit = UViT(patch_size=4, emb_features=16, num_layers=2, num_heads=2, norm_groups=4)
    show_model(vit, x, t, array(1, 4, 8))


if __name__ == "__main__":
    globals()[sys.argv[1]]()
