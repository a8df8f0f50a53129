"""Gradients written by hand, and how to do without them."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

from keras import config, ops

_AUTOMATIC = contextvars.ContextVar("automatic", default=False)


def custom_gradient(function: Callable) -> Callable:
    """As `keras.ops.custom_gradient`: function(*tensors) -> value, gradient. Within `automatic` the value alone."""

    def call(*tensors):
        return function(*tensors)[0] if _AUTOMATIC.get() else ops.custom_gradient(function)(*tensors)

    return call


@contextlib.contextmanager
def automatic() -> Iterator[None]:
    """Leaves gradients to the backend: a graph for serving has none written by hand, of which its loader would warn."""
    token = _AUTOMATIC.set(True)
    try:
        yield
    finally:
        _AUTOMATIC.reset(token)


def gradients_of(function: Callable, *tensors):
    """Returns function's auxiliary value and the gradients of its scalar by `tensors`, on Keras' backend."""
    backend = config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            value, extra = function(*tensors)
        return extra, tape.gradient(value, tensors)
    if backend == "jax":
        import jax

        gradients, extra = jax.grad(function, argnums=tuple(range(len(tensors))), has_aux=True)(*tensors)
        return extra, gradients
    raise NotImplementedError(f"gradients need Keras' tensorflow or jax backend, got {backend!r}.")
