"""Gradients written by hand, and how to do without them."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

from keras import ops

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
