"""Stacks: trace, compile and step time and temporary memory of every way to run one.

The body is the transformer block of the other tables, the same code for flax.linen and liftax.
Each way is written by hand on ``jax.lax`` too, and a library that has no word for a way is left
out of its row. A program counts only if its gradients are those by hand.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import Config, Model
from benchmarks.peers import by_hand as hand
from benchmarks.peers.common import BODIES, gradient
from benchmarks.peers.linenlike import block_class
from benchmarks.table import BASELINE, Cell, Table, error_text
from benchmarks.timing import CLOCKS, Sample, Settings, interleave

DEPTH = 12
GROUP = 3
TRACES = 5  # rounds of tracing, which takes long enough for a clock
TOLERANCE = 1e-4
DEPTHS = (16, 64, 256, 1024)
PEERS = (BASELINE, "liftax", "flax.linen", "haiku", "haliax")
CONFIG = Config(lengths=(DEPTH,), dim=32, batch=2, positions=16)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to run a stack: ``group`` layers written out, ``every`` layers recomputed."""

    name: str
    loop: bool = False
    group: int = 1
    every: int = 0
    policy: str | None = None
    nested: bool = False


WAYS = (
    Way("scan"),
    Way("loop", loop=True),
    Way(f"scan of {GROUP}", group=GROUP),
    Way("scan, remat each", every=1),
    Way("loop, remat each", loop=True, every=1),
    Way("scan, remat each, dots saved", every=1, policy="dots_saveable"),
    Way("scan, products kept", every=1, policy="products"),
    Way(f"scan, remat every {GROUP}", every=GROUP),
    Way(f"scan of {GROUP}, remat every {GROUP}", group=GROUP, every=GROUP),
    Way(f"scan, remat every {GROUP} and each", every=GROUP, nested=True),
)


def run(settings: Settings) -> list[Table]:
    return [*run_ways(settings), run_depths(settings)]


# --- the peers ----------------------------------------------------------------------------


def policy_of(way: Way) -> Any:
    import liftax as nn

    return nn.Remat(way.policy).as_policy() if way.policy else None


def by_hand(way: Way, config: Config) -> Model:
    """Loops and checkpoints on ``jax.lax`` and ``jax.checkpoint``."""
    depth = config.layers

    def again(step: Any) -> Any:
        return jax.checkpoint(step, policy=policy_of(way), prevent_cse=way.loop)

    def written_out(step: Any) -> Any:
        def steps(x: Any, params: Any) -> Any:
            # As leaves taken apart at once: indexing each layer would add padded gradients.
            leaves, treedef = jax.tree.flatten(params)
            for parts in zip(*map(jnp.unstack, leaves), strict=True):
                x, _ = step(x, jax.tree.unflatten(treedef, parts))
            return x, None

        return steps

    def forward(params: Any, x: Any) -> Any:
        def layer(x: Any, p: Any) -> Any:  # a function that jax.lax.scan has not seen
            return hand.body(p, x, config), None

        step = again(layer) if way.every == 1 or way.nested else layer
        size = max(way.group, way.every, 1)
        if size > 1:
            inner = written_out(step) if way.loop or way.group > 1 else scanned(step)
            step = again(inner) if way.every > 1 else inner
            params = jax.tree.map(lambda p: p.reshape(depth // size, size, *p.shape[1:]), params)
        outer = written_out if way.loop else scanned
        return outer(step)(x, params)[0]

    return Model(forward, lambda params: params)


def scanned(step: Any) -> Any:
    return lambda x, params: (jax.lax.scan(step, x, params)[0], None)


def liftax(way: Way, config: Config) -> Model:
    import liftax as nn

    remat = nn.Remat(way.policy, every=way.every, nested=way.nested) if way.every else None
    run = "loop" if way.loop else f"scan of {way.group}" if way.group > 1 else "scan"
    stack = nn.Stack(
        block_class(nn)(config), depth=config.layers, outputs=True, run=run, remat=remat
    )
    return Model(
        lambda variables, x: stack.apply(variables, x)[0],
        lambda params: {"params": {"block_0": params}},
    )


def linen(way: Way, config: Config) -> Model | None:
    """``nn.scan``, and ``nn.remat_scan`` where groups of layers are recomputed."""
    import flax.linen as nn

    block = block_class(nn)
    depth, size = config.layers, max(way.group, way.every)
    options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}

    class Plain(block):  # type: ignore[misc, valid-type]
        def __call__(self, x: Any) -> Any:
            return super().__call__(x)[0]

    if way.nested:
        return None
    if size > 1:
        if way.loop or way.group > 1 or way.policy:
            return None
        module = nn.remat_scan(Plain, lengths=(depth // size, size))(config)

        def in_groups(params: Any) -> Any:
            split = jax.tree.map(lambda p: p.reshape(depth // size, size, *p.shape[1:]), params)
            return {"params": split}

        return Model(lambda variables, x: module.apply(variables, x), in_groups)
    layer = block
    if way.every:
        layer = nn.remat(block, policy=policy_of(way), prevent_cse=way.loop)
    if not way.loop:
        stack = nn.scan(layer, length=depth, **options)(config)
        return Model(
            lambda variables, x: stack.apply(variables, x)[0], lambda params: {"params": params}
        )

    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(depth):
                x, _ = layer(config, name=f"layers_{i}")(x)
            return x

    # From the same stacked arrays as the others, so that the programs do the same.
    def forward(params: Any, x: Any) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        parts = zip(*map(jnp.unstack, leaves), strict=True)
        layers = {f"layers_{i}": jax.tree.unflatten(treedef, p) for i, p in enumerate(parts)}
        return Loop().apply({"params": layers}, x)

    return Model(forward, lambda params: params)


def haiku(way: Way, config: Config) -> Model | None:
    """``hk.layer_stack``, whose ``unroll`` writes groups out."""
    import haiku as hk

    from benchmarks.peers import haiku as peer

    if way.loop or way.every > 1 or way.policy:
        return None

    def stack(x: Any) -> Any:
        layer = lambda x: peer.Block(config, name="layers")(x)  # noqa: E731
        if way.every:
            layer = hk.remat(layer, prevent_cse=False)
        return hk.layer_stack(config.layers, unroll=way.group)(layer)(x)

    model = hk.without_apply_rng(hk.transform(stack))
    scan = peer.build(config)
    return Model(lambda variables, x: model.apply(variables, x), scan.adopt)


def haliax(way: Way, config: Config) -> Model | None:
    """``haliax.nn.Stacked`` over a block of plain arrays."""
    import equinox as eqx
    import haliax as hax

    if way.loop or way.group > 1 or way.policy or way.every > 1:
        return None

    class Block(eqx.Module):
        params: Any

        def __call__(self, x: Any) -> Any:
            return hand.body(self.params, x, config)

    layers = hax.Axis("layers", config.layers)
    stacked = hax.nn.Stacked(Block(None), layers, bool(way.every))

    def adopt(params: Any) -> Any:
        return dataclasses.replace(stacked, stacked=Block(jax.tree.map(named, params)))

    def named(p: Any) -> Any:
        return hax.named(p, ("layers", *(f"axis_{i}" for i in range(1, p.ndim))))

    class Unnamed(Block):
        def __call__(self, x: Any) -> Any:
            return hand.body(
                jax.tree.map(lambda p: p.array, self.params, is_leaf=_named), x, config
            )

    def _named(value: Any) -> bool:
        return isinstance(value, hax.NamedArray)

    def forward(variables: Any, x: Any) -> Any:
        module = dataclasses.replace(variables, stacked=Unnamed(variables.stacked.params))
        return module.fold(x)

    return Model(forward, adopt)


BUILD: dict[str, Callable[[Way, Config], Model | None]] = {
    BASELINE: by_hand,
    "liftax": liftax,
    "flax.linen": linen,
    "haiku": haiku,
    "haliax": haliax,
}


@dataclasses.dataclass(frozen=True)
class Program:
    """One peer's gradient of one way: to be traced, and compiled."""

    gradient: Callable[[Any, Any], Any]
    variables: Any
    compiled: Any
    seconds: float

    def trace(self, x: Any) -> Any:
        """Traces afresh: ``jax.jit`` gets a function it has not seen."""
        return jax.jit(lambda v, x: self.gradient(v, x)).trace(self.variables, x)

    def call(self, x: Any) -> Any:
        return jax.block_until_ready(self.compiled(self.variables, x))


def program(name: str, way: Way, x: Any, clock: Callable[[], float]) -> Program | str | None:
    """A peer's program; why it is left out; None where it has no such way."""
    try:
        model = BUILD[name](way, CONFIG)
        if model is None:
            return None
        variables = model.adopt(hand.noisy(CONFIG))
        function = gradient(model)
        lowered = jax.jit(function).lower(variables, x)
        start = clock()
        compiled = lowered.compile()
        made = Program(function, variables, compiled, clock() - start)
        found = norms(made.call(x))
    except Exception as error:  # one peer's fault must not hide the others' figures
        return f"left out, {error_text(error)}"
    expected = reference()
    near = TOLERANCE * expected.max()  # some are zero but for rounding
    if found.shape != expected.shape or not np.allclose(found, expected, TOLERANCE, near):
        return "left out, its gradients are not those by hand"
    return made


def norms(grads: Any) -> np.ndarray:
    """What does not depend on a peer's names: the norms of all arrays, in their own order."""
    return np.sort([float(jnp.linalg.norm(g.ravel())) for g in jax.tree.leaves(grads)])


@functools.cache
def reference() -> np.ndarray:
    return norms(jax.jit(gradient(hand.build(CONFIG)))(hand.noisy(CONFIG), CONFIG.input()))


# --- the tables ---------------------------------------------------------------------------


def peers(settings: Settings) -> list[str]:
    return [n for n in PEERS if settings.peers is None or n in settings.peers or n == BASELINE]


def run_ways(settings: Settings) -> list[Table]:
    """A table for each figure, a row for each way."""
    names = peers(settings)
    titles = {
        "trace": f"trace time of the gradient, {DEPTH} layers",
        "compile": f"compile time of the gradient, {DEPTH} layers",
        "step": f"time of the compiled gradient, {DEPTH} layers",
        "memory": f"peak temporary bytes of the gradient, {DEPTH} layers",
    }
    tables = {k: Table(f"stack-{k}", t, names, unit="way") for k, t in titles.items()}
    x = CONFIG.input()
    tracing = dataclasses.replace(settings, rounds=min(settings.rounds, TRACES))
    for way in WAYS:
        ready: dict[str, Program] = {}
        for name in names:
            found = program(name, way, x, CLOCKS[settings.clock])
            if isinstance(found, Program):
                ready[name] = found
            elif found is not None:
                tables["trace"].note(f"{name}, {way.name}: {found}")
        traces = {name: functools.partial(p.trace, x) for name, p in ready.items()}
        steps = {name: functools.partial(p.call, x) for name, p in ready.items()}
        compiled = {name: Sample((p.seconds,)) for name, p in ready.items()}
        memory = {name: temporary(p.compiled) for name, p in ready.items()}
        tables["trace"].put_samples(way.name, interleave(traces, tracing, warm_up=1))
        bodies = ", ".join(f"{name} {BODIES.count(trace)}" for name, trace in traces.items())
        tables["trace"].note(f"{way.name}: bodies traced by {bodies}")
        tables["compile"].put_samples(way.name, compiled)
        tables["step"].put_samples(way.name, interleave(steps, settings, wall=True))
        tables["memory"].put_counts(way.name, memory)
    return list(tables.values())


def run_depths(settings: Settings) -> Table:
    """The temporary memory of the gradient, 16 to 1,024 layers deep, in carries.

    A carry is what goes from layer to layer. Without remat the figure grows with the depth times
    what a layer stores; with remat of each layer with the depth; with remat of groups of
    sqrt(depth) layers, and of each layer within, with its square root.
    """
    import liftax as nn

    plans: dict[str, Any] = {
        "no remat": None,
        "each layer": nn.Remat(),
        "groups of sqrt(depth)": nn.Remat(every="sqrt", nested=False),
        "groups, and each within": nn.Remat(every="sqrt"),
    }
    table = Table(
        "stack-depth",
        "temporary memory of the gradient of an MLP, in carries, and growth per 4x of depth",
        list(plans),
        unit="layers",
    )
    x = jnp.ones((64, 256))
    before: dict[str, float] = {}
    for depth in DEPTHS:
        for name, plan in plans.items():
            carries = memory_of(nn.Stack(mlp(nn)(), depth=depth, remat=plan), x) / x.nbytes
            growth = f" ({carries / before[name]:.2f}x)" if name in before else ""
            before[name] = carries
            table.put(str(depth), name, Cell(f"{carries:.1f}{growth}", carries))
    table.targets[str(DEPTHS[-1])] = "the last column grows 2x"
    return table


def mlp(nn: Any) -> Any:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            # Of one feature's width only, so that the parameters' gradients stay small.
            gain = self.param("gain", nn.initializers.ones, x.shape[-1:])
            for _ in range(4):
                x = jnp.sin(x * gain)
            return x

    return Layer


def memory_of(stack: Any, x: Any) -> float:
    variables = jax.eval_shape(lambda: stack.init(jax.random.key(0), x))
    grads = jax.grad(lambda v, x: stack.apply(v, x).sum())
    return temporary(jax.jit(grads).lower(variables, x).compile())


def temporary(program: Any) -> float:
    return float(program.memory_analysis().temp_size_in_bytes)
