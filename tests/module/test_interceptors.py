"""Interceptors hear what Linen's hear: which calls, in which order, of which task."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from helpers.compare import Library, both, ours
from helpers.run import keys

X = jnp.ones(2)


def listener(log: list[Any], tag: str = "") -> Callable[..., Any]:
    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        log.append(f"{tag}{type(context.module).__name__}.{context.method_name}")
        return call(*args, **kwargs)

    return note


def heard(lib: Library, run: Callable[[], Any]) -> list[str]:
    log: list[str] = []
    with lib.nn.intercept_methods(listener(log)):
        run()
    return log


def test_the_context_is_a_frozen_dataclass_of_three_fields() -> None:
    def run(lib: Library) -> Any:
        seen: list[Any] = []

        def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            names = [field.name for field in dataclasses.fields(context)]
            with pytest.raises(dataclasses.FrozenInstanceError):
                context.method_name = "other"
            seen.append((type(context).__name__, names, repr(context).split("(")[0]))
            assert not isinstance(context, tuple)
            assert context.orig_method(*args, **kwargs) == 3.0
            return call(*args, **kwargs)

        class Model(lib.nn.Module):
            def __call__(self, x):
                return x

        with lib.nn.intercept_methods(note):
            Model().apply({}, 3.0)
        return seen

    both(run)


def test_unbound_modules_operators_and_each_level_of_super() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Base(nn.Module):
            width: int = 2

            def setup(self):
                self.made = 1

            def once(self, x):
                return x

            @nn.nowrap
            def alone(self, x):
                return x

            @staticmethod
            def static(x):
                return x

            @classmethod
            def of_class(cls, x):
                return x

            @property
            def half(self):
                return self.width // 2

            def __getitem__(self, x):
                return self.once(x)

            def __add__(self, x):
                return x

            def __len__(self):
                return 3

            def __call__(self, x):
                return self.once(x)

        class Middle(Base):
            def setup(self):
                super().setup()

            def once(self, x):
                return super().once(x)

            def __call__(self, x):
                return super().__call__(x)

        class Model(Middle):
            def __repr__(self):
                return "Model"

        def all_of_it(model: Any, x: Any = 1.0) -> Any:
            model.once(x), model.alone(x), model.static(x), model.of_class(x), repr(model)
            return model.half, model[x], model + x, len(model), model == model, model(x)

        return [
            heard(lib, lambda: all_of_it(Model())),
            heard(lib, lambda: Model().apply({}, 1.0, method=all_of_it)),
            heard(lib, lambda: Model().apply({}, 1.0)),
        ]

    unbound, _, bound = both(run)
    assert unbound[:2] == ["Model.once"] * 2 and "Model.__getitem__" in unbound
    assert bound == ["Model.setup"] * 2 + ["Model.__call__"] * 2 + ["Model.once"] * 2


def test_the_outermost_hears_first_and_may_change_what_the_others_hear() -> None:
    def run(lib: Library) -> Any:
        log: list[Any] = []

        def double(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            log.append(f"double {float(args[0])}")
            return call(args[0] * 2.0, **kwargs) + 1.0

        def itself(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            log.append(f"itself {float(args[0])}")
            return context.orig_method(*args, **kwargs)

        class Model(lib.nn.Module):
            def __call__(self, x):
                return x

        y = []
        for first, second in ((double, itself), (itself, double), (double, double)):
            with lib.nn.intercept_methods(first), lib.nn.intercept_methods(second):
                y.append(Model().apply({}, 3.0))
            y.append(Model().apply({}, 3.0))
        return y, log

    both(run)


LIFTS: dict[str, Callable[[Any, Any], Any]] = {
    "remat": lambda nn, block: nn.remat(block)(),
    "jit": lambda nn, block: nn.jit(block)(),
    "vmap": lambda nn, block: nn.vmap(block, in_axes=None, axis_size=2)(),
    "nest": lambda nn, block: nn.remat(nn.jit(nn.vmap(block, in_axes=None, axis_size=2)))(),
    "one of two methods": lambda nn, block: nn.remat(block, methods=["other"])(),
    "map_variables": lambda nn, block: nn.map_variables(block, "params")(),
    "function": lambda nn, block: lambda x: nn.remat(lambda mdl, x: mdl(x))(block(), x),
}


@pytest.mark.parametrize("lift", LIFTS)
def test_a_lifted_class_is_heard_and_then_what_runs_inside(lift: str) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Block(nn.Module):
            def other(self, x):
                return x + 1.0

            def __call__(self, x):
                return self.other(x)

        class Decorated(nn.Module):
            @nn.jit
            def __call__(self, x):
                return x

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = LIFTS[lift](nn, Block)(x)
                return nn.remat(lambda mdl, x: x)(self, Decorated()(x))

        return heard(lib, lambda: Model().apply({}, X))

    both(run)


def test_the_setup_of_a_lifted_class_runs_inside_the_lift_alone() -> None:
    """Linen runs it outside as well, on an instance that nobody uses."""

    def run(lib: Library) -> Any:
        class Block(lib.nn.Module):
            def setup(self):
                self.made = 1.0

            def __call__(self, x):
                return x + self.made

        return heard(lib, lambda: lib.nn.remat(Block)().apply({}, X))

    assert run(ours()) == ["CheckpointBlock.<lambda>", "Block.setup", "Block.__call__"]


def test_each_task_hears_its_own_calls_and_those_that_it_starts() -> None:
    nn = ours().nn
    logs: dict[str, list[str]] = {name: [] for name in ("Dense", "LayerNorm", "RMSNorm")}
    layers = {"Dense": nn.Dense(2), "LayerNorm": nn.LayerNorm(), "RMSNorm": nn.RMSNorm()}

    async def child(layer: Any) -> Any:
        await asyncio.sleep(0)
        return layer.init_with_output(keys(), X)

    async def task(name: str) -> None:
        with nn.intercept_methods(listener(logs[name])):
            await asyncio.sleep(0)
            layers[name].init_with_output(keys(), X)
            await asyncio.create_task(child(layers[name]))
            with nn.override_named_call(False):
                await asyncio.sleep(0)
            await asyncio.to_thread(layers[name].init_with_output, keys(), X)

    async def all_tasks() -> None:
        await asyncio.gather(*map(task, logs))

    asyncio.run(all_tasks())
    assert logs == {name: [f"{name}.__call__"] * 3 for name in logs}


def test_blocks_that_end_in_another_order_than_they_began() -> None:
    nn = ours().nn
    log: list[str] = []

    def generator() -> Any:
        with nn.intercept_methods(listener(log, "first ")):
            yield

    running = generator()
    next(running)
    with nn.intercept_methods(listener(log, "second ")):
        nn.relu(1.0), nn.Dropout(0.5, deterministic=True).apply({}, X)
        running.close()
        nn.Dropout(0.5, deterministic=True).apply({}, X)
    nn.Dropout(0.5, deterministic=True).apply({}, X)
    both_then_one = ["first ", "second ", "second "]
    assert log == [f"{tag}Dropout.__call__" for tag in both_then_one]


def test_another_thread_is_not_heard() -> None:
    nn = ours().nn

    def elsewhere() -> None:
        thread = threading.Thread(target=lambda: nn.Dense(2).init_with_output(keys(), X))
        thread.start()
        thread.join()

    assert heard(ours(), elsewhere) == []
