"""The user's Keras metrics: what they are given are labels as they came, and logits."""

import contextlib
import functools
import inspect
from collections.abc import Iterator

import keras

_OBJECTS = (keras.metrics.Metric, keras.losses.Loss)
_CROSS_ENTROPIES = (keras.metrics.CategoricalCrossentropy, keras.metrics.SparseCategoricalCrossentropy)
# Those whose configuration does not tell that they take probabilities.
_OF_PROBABILITIES = (keras.metrics.KLDivergence, keras.metrics.Poisson)
_FUNCTIONS = (keras.losses.kl_divergence, keras.losses.poisson)
# In any case of letters; Keras chooses among its own by the labels.
_ACCURACIES = ("accuracy", "acc")
_THRESHOLDS = ("thresholds", "threshold", "num_thresholds")


def metrics_of_logits(name: str, metrics):
    """Returns the metrics, a cross-entropy that is given by its name with `from_logits=True`. Refuses those of
    probabilities, which would be computed of the logits, wrong in silence.

    Args:
        name: the argument's. metrics: names, Keras metrics or losses, functions, nested as Keras has them, or None.

    Raises:
        ValueError: the metric and the remedy.
    """
    return None if metrics is None else keras.tree.map_structure(lambda metric: _of_logits(name, metric), metrics)


def _of_logits(name: str, metric):
    if metric is None or str(metric).lower() in _ACCURACIES:
        return metric
    found = keras.metrics.get(metric) if isinstance(metric, str) else metric
    if isinstance(metric, str) and type(found) in _CROSS_ENTROPIES:
        return type(found)(name=found.name, from_logits=True)
    remedy = _remedy(found)
    if remedy:
        called = getattr(found, "__name__", type(found).__name__)
        raise ValueError(
            f"{name} must take logits, in which the classifier ends, but {called} takes probabilities: "
            f"{remedy.format(called)}."
        )
    return metric


def _remedy(metric) -> str | None:
    """What to write for a metric of probabilities; None for one of logits."""
    if type(metric) is keras.metrics.MeanMetricWrapper:
        # Its configuration would serialise the function, which not every one can be.
        return _remedy(functools.partial(metric._fn, **metric._fn_kwargs) if metric._fn_kwargs else metric._fn)
    if isinstance(metric, _OBJECTS):
        # What a user's own class makes of a threshold is theirs.
        options = metric.get_config() if type(metric).__module__.startswith("keras.") else {}
    else:
        options = _defaults(metric)
    if "from_logits" in options:
        written = "{}(from_logits=True)" if isinstance(metric, _OBJECTS) else "give it from_logits=True"
        return None if options["from_logits"] else written
    if isinstance(metric, _OF_PROBABILITIES) or metric in _FUNCTIONS:
        return "write a function (labels, logits) that calls it with keras.ops.softmax(logits)"
    if not isinstance(metric, keras.metrics.Metric) or not any(name in options for name in _THRESHOLDS):
        return None
    if "top_k" in options:
        return None if options["top_k"] else "{}(top_k=1)"
    if isinstance(metric, keras.metrics.FBetaScore):
        return None if options["threshold"] is None else "{}(threshold=None)"
    return "write a function (labels, logits), or take AUC(from_logits=True), F1Score(), Precision(top_k=1)"


def _defaults(function) -> dict:
    try:
        return {name: each.default for name, each in inspect.signature(function).parameters.items()}
    except (TypeError, ValueError):  # nothing callable, of which Keras will say so, or one without a signature
        return {}


@contextlib.contextmanager
def updating(labels, logits) -> Iterator[None]:
    """Says what a metric was given where it can't take that."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"metrics must take labels as they are given, of shape {tuple(labels.shape)}, and logits "
            f"{tuple(logits.shape)}; one does not. Those that want one-hot labels: keras.utils.to_categorical(labels) "
            "for the labels; those that want class numbers, of a sparse_ kind."
        ) from error
