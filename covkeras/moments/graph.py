"""Walking through a Keras model's graph: the only place that knows it, pinned by tests."""

from collections.abc import Callable

import keras
from keras import tree


class Call:
    """A node of a graph that is more than a layer of one tensor: an operation (x + y, x * 2, ops.relu(x)), or a layer
    that is called with several tensors or with values of its own (attention). Called like a layer, with its tensors.

    Attributes:
        operation: the Keras operation or layer. name: of it. tensors: how many it takes.
    """

    def __init__(self, node):
        self.operation, self.name, self._arguments = node.operation, node.operation.name, node.arguments
        self.tensors = len(node.input_tensors)

    # Of one node there is a new Call at every walk: what was found out about one holds of all.
    def __eq__(self, other):
        return isinstance(other, Call) and self._arguments is other._arguments

    def __hash__(self):
        return id(self._arguments)

    def constant(self) -> tuple:
        """Returns what a two-sided operation takes beside its one tensor, and whether it comes first."""
        values = [*self._arguments.args, *self._arguments.kwargs.values()]
        places = [i for i, value in enumerate(values) if not _is_tensor(value)]
        if len(values) != 2 or len(places) != 1:
            raise NotImplementedError(f"operation {self.name!r} must have one tensor and one value, got {values}.")
        return values[places[0]], places[0] == 0

    def __call__(self, given, training=None, **more):
        """Applies it to the tensors, in the order in which the node names them; `more`: options of a layer's call."""
        left = list(given if isinstance(given, list) else [given])
        args, kwargs = tree.map_structure(
            lambda a: left.pop(0) if _is_tensor(a) else a, (self._arguments.args, self._arguments.kwargs)
        )
        if training is not None and getattr(self.operation, "_call_has_training_arg", False):
            kwargs = {**kwargs, "training": training}
        return self.operation(*args, **{**kwargs, **more})


def _is_tensor(value) -> bool:
    return isinstance(value, keras.KerasTensor)


def walk(model, value, visit: Callable):
    """Carries `value` through a model's graph and returns what arrives at its output.

    Args:
        model: a built Sequential or Functional model with one input and one output.
        value: what stands for the model's input.
        visit: (layer, value or list of values, position, options) -> value, called once per use of a layer, in
            topological order; `position` counts the calls, `options` holds a `training` that the graph itself passes.
            In the place of a layer stands a `Call` where the node is no layer of one tensor, or list of tensors. A node
            of several outputs returns a list.
    """
    functional = graph_of(model)
    values = {id(functional.inputs[0]): value}
    for position, node in enumerate(nodes_of(model)):
        layer, tensors, options = called_with(node)
        result = visit(layer, tree.map_structure(lambda t: values[id(t)], tensors), position, options)
        results = result if len(node.outputs) > 1 else [result]
        values.update({id(output): one for output, one in zip(node.outputs, results, strict=True)})
    return values[id(functional.outputs[0])]


def graph_of(model):
    """Returns the Functional model behind a Sequential one, or the model."""
    return getattr(model, "_functional", None) or model


def nodes_of(model) -> list:
    """Returns the calls in a model's graph, in topological order."""
    by_depth = graph_of(model)._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def called_with(node) -> tuple:
    """What is called in a graph: the layer, or a `Call`; its tensor or list of tensors; its options."""
    layer = node.operation
    named = {**{str(i): a for i, a in enumerate(node.arguments.args)}, **node.arguments.kwargs}
    named = {name: a for name, a in named.items() if a is not None}
    tensors = {n: a for n, a in named.items() if any(_is_tensor(t) for t in tree.flatten(a))}
    options = {name: a for name, a in named.items() if name not in tensors}
    simple = isinstance(layer, keras.layers.Layer) and len(tensors) == 1 and set(options) <= {"training"}
    only = next(iter(tensors.values()), None)
    if simple and (_is_tensor(only) or (isinstance(only, (list, tuple)) and all(map(_is_tensor, only)))):
        return layer, only, options
    flat = [t for a in tensors.values() for t in tree.flatten(a) if _is_tensor(t)]
    return Call(node), flat if len(flat) != 1 else flat[0], {}
