"""copy.deepcopy and pickle, as joblib and multiprocessing hand objects over: a copy goes on as the original does.

The oracle is the original, bit for bit.
"""

import copy
import pickle
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_classifier

from covkeras import CertifiedTrainer, MomentNetwork, SmoothedClassifier, objectives
from covkeras.commands.main import main

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda one: pickle.loads(pickle.dumps(one))}


@pytest.fixture(params=WAYS)
def copied(request):
    return WAYS[request.param]


def test_a_trainers_copy_trains_on_as_it_does(copied, digits):
    images, labels = digits.floats(slice(96)), digits.labels[:96]
    trainer = CertifiedTrainer(small_classifier(classes=10), objectives.SteppedConsistency(0.25), seed=3)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 12)
    trainer.compile(keras.optimizers.SGD(schedule, momentum=0.9), metrics=["sparse_categorical_crossentropy"])
    how = {"batch_size": 32, "verbose": 0, "shuffle": False}
    trainer.fit(images, labels, epochs=2, **how)
    twin = copied(trainer)
    before = trainer.classifier.get_weights()
    logs = [one.fit(images, labels, epochs=4, initial_epoch=2, **how).history for one in (twin, trainer)]
    assert logs[0] == logs[1] and "sparse_categorical_crossentropy" in logs[0]
    after = [one.classifier.get_weights() for one in (twin, trainer)]
    for first, second, start in zip(*after, before, strict=True):
        assert np.array_equal(first, second) and not np.array_equal(first, start)
    trainer.compile("sgd", jit_compile=True)
    assert copied(trainer).get_compile_config()["jit_compile"] and not twin.get_compile_config()["jit_compile"]


def test_a_networks_copy_and_its_file_say_the_same(copied, digits, tmp_path, capsys):
    images, network = (
        digits.floats(slice(4)),
        MomentNetwork(small_classifier(classes=10), 0.25, 0.2, rectifier="bivariate"),
    )
    network.save(tmp_path / "network.keras")
    for twin in (copied(network), keras.models.load_model(tmp_path / "network.keras")):
        for mine, other in zip(twin(images), network(images), strict=True):
            np.testing.assert_array_equal(mine, other)
        assert (twin.sigma, twin.r_max, twin.rectifier) == (0.25, 0.2, "bivariate")
    # Handed over where a classifier is wanted, it stands for its own.
    radii = [SmoothedClassifier(one, 0.25).certify(images, n=200).radius for one in (network, network.classifier)]
    np.testing.assert_array_equal(*radii)
    arguments = [str(tmp_path / "network.keras"), "--sigma", "0.25", "--n", "200", "--max", "4"]
    assert main(["certify", *arguments, "--out", str(tmp_path / "c.tsv")]) == 0 and "ACR" in capsys.readouterr().out


def test_keras_order_of_arguments_holds_and_a_loss_is_refused(digits):
    trainer, network = (
        CertifiedTrainer(small_classifier(), objectives.Macer(0.25)),
        MomentNetwork(small_classifier(), 0.25),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="loss must not be given: the objective is the loss"):
        trainer.compile("sgd", loss)
    with pytest.raises(ValueError, match="jit_compile must be True, False or 'auto', got 'xla'"):
        trainer.compile("sgd", jit_compile="xla")
    trainer.compile("sgd", None, None, ["sparse_categorical_accuracy"])
    logs = trainer.evaluate(digits.floats(slice(8)), digits.labels[:8] % 3, return_dict=True, verbose=0)
    assert "sparse_categorical_accuracy" in logs
    with pytest.raises(ValueError, match=r"loss must be two, .* such as \[loss, None\], got one"):
        network.compile("sgd", loss)
    # Of the mean alone, as a classifier is trained.
    network.compile(keras.optimizers.SGD(0.1), [loss, None])
    losses = network.fit(digits.floats(slice(64)), digits.labels[:64] % 3, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    with pytest.raises(NotImplementedError, match=r"call network\(images\), a batch at a time"):
        network.predict(digits.floats(slice(8)))


def test_a_smoothed_classifiers_copy_certifies_as_it_does(copied, digits):
    images, smoothed = digits.floats(slice(4)), SmoothedClassifier(small_classifier(classes=10), 0.25)
    radii = smoothed.certify(images, n=200).radius
    np.testing.assert_array_equal(copied(smoothed).certify(images, n=200).radius, radii)
    spread = SmoothedClassifier(small_classifier(classes=10), 0.25, strategy=tf.distribute.MirroredStrategy(["/cpu:0"]))
    with pytest.raises(TypeError, match="strategy can't be copied or pickled"):
        copied(spread)


def test_threads_share_a_smoothed_classifier(digits):
    images, smoothed = digits.floats(slice(4)), SmoothedClassifier(small_classifier(classes=10), 0.25)
    found = {}

    def certify(i):
        found[i] = (
            smoothed.certify(images[i : i + 1], n=200, index=i).radius[0],
            smoothed.certify_at(images[i : i + 1], 0.2, max_n=1_000, index=i).certified[0],
        )

    threads = [threading.Thread(target=certify, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    radii, decided = smoothed.certify(images, n=200).radius, smoothed.certify_at(images, 0.2, max_n=1_000).certified
    assert [found[i] for i in range(4)] == list(zip(radii, decided, strict=True))
