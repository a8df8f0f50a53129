"""The user's Keras metrics, of a classifier that ends in logits."""

import functools
import re

import keras
import numpy as np
import pytest
from conftest import grid_images, small_classifier
from keras import metrics

from covkeras import CertifiedTrainer, objectives


def trained(given, images, labels, **how):
    trainer = CertifiedTrainer(small_classifier(), objectives.GaussianAugmentation(sigma=0.25))
    trainer.compile(optimizer="sgd", metrics=given)
    return trainer.fit(images, labels, batch_size=8, verbose=0, **how).history


@pytest.fixture
def images(rng):
    return grid_images(rng, 16, 8)


LABELS = np.arange(16) % 2


@pytest.mark.parametrize(
    "given, remedy",
    [
        (["accuracy", "binary_crossentropy"], "BinaryCrossentropy(from_logits=True)"),
        (
            metrics.CategoricalCrossentropy(),
            "CategoricalCrossentropy takes probabilities: CategoricalCrossentropy(from_logits=True)",
        ),
        (metrics.AUC(), "AUC(from_logits=True)"),
        (metrics.Precision(), "Precision(top_k=1)"),
        ([["acc"], [metrics.Recall(thresholds=0.5)]], "Recall(top_k=1)"),
        (metrics.F1Score(threshold=0.5), "F1Score(threshold=None)"),
        (metrics.SensitivityAtSpecificity(0.5), "write a function (labels, logits)"),
        (metrics.TruePositives(), "write a function (labels, logits)"),
        (metrics.BinaryAccuracy(), "write a function (labels, logits)"),
        (metrics.KLDivergence(), "keras.ops.softmax(logits)"),
        ("poisson", "keras.ops.softmax(logits)"),
        (metrics.MeanMetricWrapper(fn=keras.losses.sparse_categorical_crossentropy), "give it from_logits=True"),
        (keras.losses.kl_divergence, "kl_divergence takes probabilities"),
        (keras.losses.SparseCategoricalCrossentropy(), "SparseCategoricalCrossentropy(from_logits=True)"),
        (keras.losses.sparse_categorical_crossentropy, "give it from_logits=True"),
    ],
)
@pytest.mark.parametrize("argument", ["metrics", "weighted_metrics"])
def test_metrics_of_probabilities_are_refused(given, remedy, argument):
    trainer = CertifiedTrainer(small_classifier(), objectives.GaussianAugmentation(sigma=0.25))
    with pytest.raises(ValueError, match=f"{argument} must take logits.*{re.escape(remedy)}"):
        trainer.compile(**{argument: given if isinstance(given, list) else [given]})


def test_metrics_of_logits_are_keras_own(images):
    """Without training (rate 0), with hardly any noise: the values that Keras computes of the logits."""
    classifier = small_classifier()
    count = classifier.output_shape[-1]
    given = [
        metrics.CategoricalCrossentropy(from_logits=True),
        metrics.AUC(from_logits=True, multi_label=True, num_labels=count, name="auc"),
        metrics.F1Score(name="f1"),
        metrics.Recall(top_k=1, name="recall"),
    ]
    trainer = CertifiedTrainer(classifier, objectives.GaussianAugmentation(sigma=1e-6))
    trainer.compile(optimizer=keras.optimizers.SGD(0.0), metrics=["accuracy", *given])
    labels = keras.utils.to_categorical(LABELS, count)
    found = trainer.evaluate(images, labels, batch_size=16, verbose=0, return_dict=True)
    logits = classifier(images)
    for metric in given:
        metric.reset_state()
        metric.update_state(labels, logits)
        np.testing.assert_allclose(found[metric.name], metric.result(), rtol=1e-3, atol=1e-4)


OF_LOGITS = functools.partial(keras.losses.sparse_categorical_crossentropy, from_logits=True)


@pytest.mark.parametrize(
    "given, name",
    [
        ("Acc", "Acc"),
        (OF_LOGITS, None),
        (metrics.MeanMetricWrapper(fn=OF_LOGITS, name="own"), "own"),
        (metrics.MeanMetricWrapper(fn=lambda labels, logits: logits[:, 0], name="own"), "own"),
        (metrics.MeanMetricWrapper(keras.losses.sparse_categorical_crossentropy, name="own", from_logits=True), "own"),
    ],
)
def test_functions_of_logits_are_taken(given, name, images):
    history = trained([given], images, LABELS)
    assert name is None or name in history


@pytest.mark.parametrize("nested", [lambda m: [m], lambda m: [["acc", m]], lambda m: {"logits": m}])
def test_a_cross_entropy_by_its_name_is_of_the_logits(images, nested):
    classifier = small_classifier()
    classifier.layers[-1].name = "logits"
    count = classifier.output_shape[-1]
    trainer = CertifiedTrainer(classifier, objectives.GaussianAugmentation(sigma=1e-6))
    for name, labels in (
        ("sparse_categorical_crossentropy", LABELS),
        ("categorical_crossentropy", keras.utils.to_categorical(LABELS, count)),
    ):
        for argument in ("metrics", "weighted_metrics"):
            trainer.compile(**{argument: nested(name)})
            found = trainer.evaluate(images, labels, batch_size=16, verbose=0, return_dict=True)
            expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(LABELS, classifier(images))
            assert found[name] == pytest.approx(float(expected), rel=1e-4)
            assert found[name] == pytest.approx(found["loss"], rel=1e-4)


class OwnShare(metrics.Metric):
    """The share of images whose largest logit is above a threshold."""

    def __init__(self, threshold=0.5, name="own"):
        super().__init__(name=name)
        self.threshold, self.mean = threshold, metrics.Mean()

    def update_state(self, labels, logits, sample_weight=None):
        self.mean.update_state(keras.ops.max(logits, -1) > self.threshold)

    def result(self):
        return self.mean.result()

    def get_config(self):
        return {"name": self.name, "threshold": self.threshold}


def test_a_metric_of_the_users_own_may_have_thresholds(images):
    assert trained([OwnShare(-1e9)], images, LABELS)["own"] == [1.0]
    assert trained([OwnShare(1e9)], images, LABELS)["own"] == [0.0]


@pytest.mark.parametrize("given", ["mse", metrics.Mean(), metrics.AUC(from_logits=True)])
def test_labels_that_a_metric_cant_take_are_said(given, images):
    with pytest.raises(ValueError, match=r"labels as they are given, of shape \(8,\), and logits .*to_categorical"):
        trained([given], images, LABELS)
