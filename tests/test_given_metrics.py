"""The user's Keras metrics, of a classifier that ends in logits."""

import functools
import re

import keras
import numpy as np
import pytest
from conftest import grid_images, small_classifier
from keras import metrics

from covkeras import CertifiedTrainer, SmoothedClassifier, objectives


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
        "accuracy",
        metrics.CategoricalCrossentropy(from_logits=True),
        metrics.AUC(from_logits=True, multi_label=True, num_labels=count, name="auc"),
        metrics.F1Score(name="f1"),
        metrics.Recall(top_k=1, name="recall"),
        functools.partial(keras.losses.categorical_crossentropy, from_logits=True),
    ]
    trainer = CertifiedTrainer(classifier, objectives.GaussianAugmentation(sigma=1e-6))
    trainer.compile(optimizer=keras.optimizers.SGD(0.0), metrics=given[:-1])
    labels = keras.utils.to_categorical(LABELS, count)
    found = trainer.evaluate(images, labels, batch_size=16, verbose=0, return_dict=True)
    logits = classifier(images)
    for metric in given[1:-1]:
        metric.reset_state()
        metric.update_state(labels, logits)
        np.testing.assert_allclose(found[metric.name], metric.result(), rtol=1e-3, atol=1e-4)
    trained(given[-1:], images, labels)


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


@pytest.mark.parametrize("shape", [(16, 2), (16, 1, 1), (16, 8, 8, 1)])
def test_weights_that_are_not_one_an_image_are_refused(shape, images):
    with pytest.raises(ValueError, match=r"sample_weight must be \(batch,\), one number an image, got shape"):
        trained(["accuracy"], images, LABELS, sample_weight=np.ones(shape))


def test_weights_in_a_column_are_those_in_a_row(images):
    weights = np.linspace(0, 1, 16)
    histories = []
    for given in (weights, weights[:, None]):
        keras.utils.set_random_seed(0)
        histories.append(trained(["accuracy"], images, LABELS, sample_weight=given, shuffle=False)["loss"])
    assert histories[0] == histories[1]


@pytest.mark.parametrize("sigma", [64, 127.5, 10])
def test_a_level_of_8_bit_images_is_refused(sigma):
    for made in (objectives.GaussianAugmentation, functools.partial(SmoothedClassifier, small_classifier())):
        with pytest.raises(ValueError, match=r"sigma must be a number in \(0, 10\).*is divided by 255"):
            made(sigma=sigma)
