"""A classifier in another precision, or on several devices: a copy that is compared with the original."""

import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

from covkeras.runtime.probing import probe_images

PRECISIONS = ("float32", "bfloat16", "float16", "float64")


def rebuilt(classifier, precision: str | None, strategy=None):
    """Returns the classifier with its layers' arithmetic in another precision, laid on a strategy's devices.

    "bfloat16": all layers but the last with weights, and those behind it, compute in bfloat16, from float32 weights.
    That is another classifier than the one in float32, and its certificates are its own. "float64": all layers.
    The same object where nothing changes; else a snapshot: what becomes of the classifier later does not change it.

    Raises:
        ValueError: it can't be rebuilt from its configuration and its state, or the twin answers a probe otherwise;
            the message says what to do.
    """
    if precision is None and strategy is None:
        return classifier
    if strategy is not None and not isinstance(strategy, tf.distribute.Strategy):
        raise ValueError(f"strategy must be a tf.distribute.Strategy, such as MirroredStrategy(), got {strategy!r}.")
    with strategy.scope() if strategy else tf.name_scope("rebuilt"):
        copy = _twin(classifier, precision)
    # In its own arithmetic a twin must agree to the last digits: whatever a layer holds outside its weights shows.
    exact = copy if precision is None else _twin(classifier, None)
    _check_same(classifier, exact, 1e-4, "rebuilt from its configuration and weights")
    if precision is not None:
        _check_same(classifier, copy, 0.5, f"in {precision}")
    return copy


def _twin(classifier, precision: str | None):
    """A copy of the model, made of its layers' configurations, with their state."""
    head = _head(classifier)

    def clone(layer):
        config = layer.get_config()
        if precision is not None and not isinstance(layer, keras.layers.InputLayer):
            whole = precision in ("float32", "float64")
            config["dtype"] = precision if whole else "float32" if id(layer) in head else f"mixed_{precision}"
        if isinstance(layer, keras.layers.Lambda):
            # Its configuration holds its code as text, which Keras rightly refuses to run from files; this is no file.
            config["function"] = layer.function
            return keras.layers.Lambda(**config)
        return type(layer).from_config(config)

    try:
        copy = keras.models.clone_model(classifier, clone_function=clone, recursive=True)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # Keras' own, of NumPy's newest.
            warnings.simplefilter("ignore", DeprecationWarning)
            # Not set_weights: a layer may keep more, such as what an adapted Normalization computes with, and Keras'
            # files know how to bring it back.
            file = f"{folder}/state.weights.h5"
            classifier.save_weights(file)
            copy.load_weights(file)
    except Exception as error:
        raise ValueError(
            f"classifier can't be rebuilt in another precision or on several devices ({_first_line(error)}). Certify "
            "it as it is: leave out precision, and devices or strategy."
        ) from error
    return copy


def _head(model) -> set[int]:
    """The ids of the last layers with weights on each path to the output, and of all behind them."""
    found: set[int] = set()

    def back(tensor):
        layer = tensor._keras_history.operation
        if isinstance(layer, keras.layers.InputLayer) or id(layer) in found:
            return
        found.add(id(layer))
        if hasattr(layer, "layers") and getattr(layer, "outputs", None):
            found.update(_head(layer))
            if layer.weights:
                return
        elif layer.weights if isinstance(layer, keras.layers.Layer) else False:
            return
        node = layer._inbound_nodes[tensor._keras_history.node_index]
        for before in node.input_tensors:
            back(before)

    back((getattr(model, "_functional", None) or model).outputs[0])
    return found


def _check_same(classifier, copy, tolerance: float, what: str) -> None:
    """Refuses a copy whose logits on a probe differ by more than the tolerance, relative to the largest."""
    images = probe_images(classifier)
    there, here = (np.asarray(tf.cast(m(images, training=False), tf.float32)) for m in (classifier, copy))
    finite = np.isfinite(there)
    scale = 1.0 + np.abs(there[finite]).max(initial=0.0)
    off = np.abs(np.where(finite, here, 0.0) - np.where(finite, there, 0.0))
    if not (np.nan_to_num(off, nan=np.inf).max() <= tolerance * scale and (np.isfinite(here) | ~finite).all()):
        raise ValueError(
            f"classifier {what} is another function: its logits on {len(images)} test images differ by up to "
            f"{off.max():.3g}. A layer holds state outside its weights and configuration, or a model's call is not its "
            "graph. Certify it as it is: leave out precision, and devices or strategy."
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
