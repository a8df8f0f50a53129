"""Gradients written by hand, and how to do without them."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

from keras import StatelessScope, config, ops

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


def gradients_of(function: Callable, *tensors, variables=()):
    """Returns function's auxiliary value and the gradients of its scalar by `tensors`, and then by Keras `variables`
    that it reads (None for one that it doesn't), on Keras' backend."""
    backend = config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=bool(variables)) as tape:
            tape.watch(tensors)
            value, extra = function(*tensors)
        return extra, tape.gradient(value, (*tensors, *variables))
    if backend == "jax":
        return _gradients_of_jax(function, tensors, variables)
    raise NotImplementedError(f"gradients need Keras' tensorflow or jax backend, got {backend!r}.")


class _Assigned(StatelessScope):
    """Keeps what is assigned to variables (moving averages) within a JAX transformation, where it must not stay."""

    def __enter__(self):
        super().__enter__()
        self.state_mapping = dict(self.original_scope.state_mapping) if self.original_scope else {}
        self.variables = {}
        return self

    def add_update(self, update):
        self.variables[id(update[0])] = update[0]
        super().add_update(update)


def _gradients_of_jax(function: Callable, tensors, by=()):
    import jax

    touched = {}

    def with_assignments(*given):
        with _Assigned() as scope:
            scope.state_mapping.update(zip(map(id, by), given[len(tensors) :], strict=True))
            value, extra = function(*given[: len(tensors)])
        touched.update(scope.variables)
        return value, (extra, {key: scope.state_mapping[key] for key in scope.variables})

    given = (*tensors, *(variable.value for variable in by))
    gradients, (extra, assigned) = jax.grad(with_assignments, argnums=(*range(len(given)),), has_aux=True)(*given)
    for key, value in assigned.items():
        touched[key].assign(value)
    return extra, gradients
