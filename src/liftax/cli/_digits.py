"""The digits, two models that read them, and the training loop of both.

The data are the 1,797 scanned digits of 8 x 8 pixels that scikit-learn ships (E. Alpaydin and
C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import liftax as nn

from .. import recipes
from ._console import require

BATCH = 32


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """The images, `(1797, 8, 8)` in [0, 1] as float32, and their labels."""
    digits = require("sklearn.datasets", "train").load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int32)


@dataclass(frozen=True)
class Split:
    """Images and labels to train on, and the fifth that is held out."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def split_digits() -> Split:
    """The same split for every seed of the training, so that runs can be compared.

    Each digit is as frequent in both parts.
    """
    select = require("sklearn.model_selection", "train")
    images, labels = load_digits()
    images, test_images, labels, test_labels = select.train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return Split(images, labels, test_images, test_labels)


class StackClassifier(nn.Module):
    """The composed scan x vmap stack, as wide as the image has pixels, and a readout.

    Maps `(B, 8, 8)` to logits `(B, 10)`.
    """

    layers: int = 3

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        pixels = images.reshape(images.shape[0], -1)
        stack: Any = recipes.composed_lifts(self.layers, pixels.shape[-1])
        features, _ = stack(pixels, None)
        return nn.Dense(10)(features)


class RowReader(nn.Module):
    """An LSTM cell scanned over the rows of the image, top to bottom, and a readout.

    Maps `(B, 8, 8)` to logits `(B, 10)`.
    """

    features: int = 64

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        # One cell for all rows, so its parameters are shared and their stream is not split.
        # The batch is the first axis of images and of outputs; the rows are the second.
        scanned = nn.scan(
            nn.LSTMCell,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        cell = scanned(self.features)
        carry = cell.initialize_carry(jax.random.key(0), images[:, 0].shape)
        (_, hidden), _ = cell(carry, images)
        return nn.Dense(10)(hidden)


MODELS: dict[str, Callable[[], nn.Module]] = {"stack": StackClassifier, "lstm": RowReader}


@dataclass(frozen=True)
class Epoch:
    """What one pass over the images left.

    Attributes:
      number: the epoch's, from 1.
      loss, accuracy: on the images trained on, means over the steps of the epoch.
      held_out_loss, held_out_accuracy: after it, on the images that are held out.
      variables: what was trained.
    """

    number: int
    loss: float
    accuracy: float
    held_out_loss: float
    held_out_accuracy: float
    variables: Any


def train(model: nn.Module, data: Split, *, epochs: int, seed: int) -> Iterator[Epoch]:
    """Trains with AdamW, a warm-up of one epoch and a cosine decay; yields after each epoch.

    Labels are smoothed by 0.1 (C. Szegedy et al., Rethinking the Inception Architecture for
    Computer Vision, 2016), which on these few images is worth half a percent of accuracy.
    """
    optax = require("optax", "train")
    # What does not fill a batch waits for an epoch with another order.
    steps = len(data.images) // BATCH
    # The decay has to end after the warm-up, with one epoch too.
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps, steps * max(epochs, 2))
    optimizer = optax.adamw(schedule, weight_decay=1e-3)
    init_key, order_key = jax.random.split(jax.random.key(seed))
    variables = model.init(init_key, data.images[:1])

    def loss(variables: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(variables, images)
        wanted = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.1)
        right = (logits.argmax(-1) == labels).astype(jnp.float32)
        return optax.softmax_cross_entropy(logits, wanted).mean(), right.mean()

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        variables, opt_state = state
        figures, gradient = jax.value_and_grad(loss, has_aux=True)(variables, *batch)
        updates, opt_state = optimizer.update(gradient, opt_state, variables)
        return (optax.apply_updates(variables, updates), opt_state), figures

    # One program for a whole epoch: a step of these models takes less than a call from Python.
    @jax.jit
    def epoch(state: Any, key: jax.Array, trained: Any, held_out: Any) -> tuple[Any, Any]:
        images, labels = trained
        order = jax.random.permutation(key, len(images))[: steps * BATCH].reshape(steps, BATCH)
        state, figures = jax.lax.scan(step, state, (images[order], labels[order]))
        return state, (*jax.tree.map(jnp.mean, figures), *loss(state[0], *held_out))

    state = (variables, optimizer.init(variables))
    trained = jnp.asarray(data.images), jnp.asarray(data.labels)
    held_out = jnp.asarray(data.test_images), jnp.asarray(data.test_labels)
    for number in range(1, epochs + 1):
        state, figures = epoch(state, jax.random.fold_in(order_key, number), trained, held_out)
        seen, right, held_out_loss, held_out_right = map(float, figures)
        yield Epoch(number, seen, right, held_out_loss, held_out_right, state[0])


def count_right(model: nn.Module, variables: object, images: np.ndarray, labels: np.ndarray) -> int:
    """How many of the images the model tells right."""
    logits = jax.jit(model.apply)(variables, images)
    return int((np.asarray(logits).argmax(-1) == labels).sum())
