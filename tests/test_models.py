import keras
import numpy as np
import pytest

from covkeras import MomentNetwork, models


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_lenet_is_a_stock_model(shape, rng):
    model = models.lenet(shape, num_classes=7)
    assert model(rng.random((2, *shape)).astype("float32")).shape == (2, 7)
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)


def test_lenet_5x5_is_the_known_lenet():
    """Its 431,080 parameters: 520, 25,050, 400,500 and 5,010."""
    model = models.lenet_5x5()
    assert model.count_params() == 431_080 and model.get_layer("pool2").output.shape[1:] == (4, 4, 50)
    with pytest.raises(ValueError, match=r"input_shape \(8, 8, 1\) leaves nothing of the image after 2 5 x 5"):
        models.lenet_5x5((8, 8, 1))


@pytest.mark.parametrize(("shape", "head"), [((32, 32, 3), (4, 4)), ((224, 224, 3), (7, 7))])
def test_preact_resnet18_has_its_shape(shape, head):
    model = models.preact_resnet18(shape, num_classes=10)
    assert model.get_layer("head_relu").output.shape[1:] == (*head, 512)
    assert model.count_params() == pytest.approx(11.2e6, rel=0.01)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)


def test_resnet_starts_with_bounded_activations(rng):
    """Without normalisation: logits of order 1 at the start, whatever the depth."""
    model = models.preact_resnet18((32, 32, 3), width=16)
    logits = np.asarray(model(rng.random((8, 32, 32, 3)).astype("float32")))
    assert 0.01 < logits.std() < 5


@pytest.mark.parametrize("shape", [(28, 28), (0, 28, 1), (28.0, 28, 1)])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="input_shape"):
        models.lenet(shape)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="num_classes must be a whole number >= 2, got 1"):
        models.preact_resnet18(num_classes=1)


def test_the_protocols_resnet_has_its_shape_and_rules_for_every_layer():
    model = models.narrow_resnet()
    assert [model.get_layer(f"stage{i}_block1_add").output.shape[1:] for i in (1, 2, 3)] == [
        (16, 16, 32),
        (8, 8, 64),
        (4, 4, 128),
    ]
    assert models.narrow_resnet(patch=1, blocks=2).get_layer("stage1_block2_add").output.shape[1:] == (32, 32, 32)
    logits = MomentNetwork(model, 0.5)(np.full((2, 32, 32, 3), 0.5, np.float32))
    assert logits.mean.shape == (2, 10) and np.isfinite(logits.cov).all()


def test_resnet110_is_the_known_one():
    """He et al. count 1.7 million weights; the projections of the shortcuts and their norms add a few."""
    assert models.resnet110().count_params() == pytest.approx(1.73e6, rel=0.01)
    small = models.resnet110(depth=8)
    convolutions = [layer for layer in small.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 1 + 6 + 2
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 2"):
        models.resnet110(depth=21)


def test_resnet50_takes_pixels(rng):
    """Keras' own 23.6 million weights without its head, and ours."""
    model = models.resnet50((32, 32, 3), num_classes=7)
    assert model.count_params() == 23_587_712 + 2048 * 7 + 7
    assert model(rng.random((2, 32, 32, 3)).astype("float32")).shape == (2, 7)


@pytest.mark.parametrize("size", [33, 45, 72])
@pytest.mark.parametrize("build", [models.preact_resnet18, models.narrow_resnet])
def test_images_of_any_size_fit(build, size, rng):
    options = {"width": 8} if build is models.preact_resnet18 else {"widths": (4, 8)}
    model = build((size, size, 3), 5, **options)
    assert model(rng.random((2, size, size, 3)).astype("float32")).shape == (2, 5)
    assert np.isfinite(MomentNetwork(model, 0.5)(rng.random((1, size, size, 3)).astype("float32")).cov).all()
