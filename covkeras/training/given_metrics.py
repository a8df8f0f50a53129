"""The user's Keras metrics: what they are given are labels as they came, and logits."""

import contextlib
import inspect
from collections.abc import Iterator

import keras

_OBJECTS = (keras.metrics.Metric, keras.losses.Loss)
# Those whose configuration does not tell that they take probabilities.
_OF_PROBABILITIES = (keras.metrics.KLDivergence, keras.metrics.Poisson)
_FUNCTIONS = (keras.losses.kl_divergence, keras.losses.poisson)
# Keras chooses among its own by the labels.
_ACCURACIES = ("accuracy", "acc")
_THRESHOLDS = ("thresholds", "threshold", "num_thresholds")


def check_metrics(name: str, metrics) -> None:
    """Refuses metrics of probabilities, which would be computed of the logits, wrong in silence.

    Args:
        name: the argument's. metrics: names, Keras metrics or losses, functions, nested as Keras has them, or None.

    Raises:
        ValueError: the metric and the remedy.
    """
    for metric in keras.tree.flatten(metrics):
        if metric in _ACCURACIES:
            continue
        found = keras.metrics.get(metric) if isinstance(metric, str) else metric
        remedy = _remedy(found)
        if remedy:
            called = getattr(found, "__name__", type(found).__name__)
            raise ValueError(
                f"{name} must take logits, in which the classifier ends, but {called} takes probabilities: "
                f"{remedy.format(called)}."
            )


def _remedy(metric) -> str | None:
    """What to write for a metric of probabilities; None for one of logits."""
    if isinstance(metric, _OBJECTS):
        options = metric.get_config()
    elif callable(metric):
        options = {k: p.default for k, p in inspect.signature(metric).parameters.items()}
    else:
        return None
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
