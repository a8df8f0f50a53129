import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import keras
import mpmath
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from conftest import grid_images, small_classifier
from keras import layers

from covkeras import SmoothedClassifier, models
from covkeras.certification.confidence import top_two_differ
from covkeras.certification.sequential import one_sided_log_wealth, required_probability
from covkeras.certification.special import TENSORFLOW
from covkeras.exporting import Defaults, export
from covkeras.exporting.graphs import rounded_down
from covkeras.exporting.signatures import decoded

DEFAULTS = Defaults(n0=50, n=700, n_predict=300, max_samples=5_000)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A LeNet on 8 x 8 images, exported: (smoothed, folder, signatures)."""
    keras.utils.set_random_seed(0)
    smoothed = SmoothedClassifier(models.lenet((8, 8, 1)), 0.25, batch_size=128)
    path = tmp_path_factory.mktemp("exports") / "digits" / "1"
    folder = export(smoothed, path, list("abcdefghij"), DEFAULTS, {"data": "x"}, key=(1, 2))
    return smoothed, folder, tf.saved_model.load(str(folder)).signatures


def columns(count, **values):
    types = {"alpha": np.float64, "radius": np.float64}
    return {k: tf.constant(np.broadcast_to(np.asarray(v, types.get(k, np.int64)), count)) for k, v in values.items()}


def certify(signatures, images, **values):
    numbers = columns(len(images), **{"n0": 50, "n": 700, "alpha": 0.001, "seed": 0, **values})
    return {k: v.numpy() for k, v in signatures["certify"](images=tf.constant(images), **numbers).items()}


def test_nothing_in_an_export_needs_a_compiler(exported):
    """Python's own loop has its look-up compiled; a server may be built without XLA."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((exported[1] / "saved_model.pb").read_bytes())
    functions = [f for graph in saved.meta_graphs for f in graph.graph_def.library.function]
    assert functions and not any(f.attr["_XlaMustCompile"].b for f in functions if "_XlaMustCompile" in f.attr)
    # The noise's table is in it once, not at each of the draws.
    assert (exported[1] / "saved_model.pb").stat().st_size < 4e6


def test_certify_is_the_smoothed_classifiers_bit_for_bit(exported, rng):
    smoothed, _, signatures = exported
    images, seeds = grid_images(rng, 6, 8), np.array([3, 1, 4, 1, 5, 9])
    # Other numbers of samples, below a batch, above one, and no multiple of it.
    for n0, n, alpha in ((50, 700, 0.001), (7, 100, 0.05), (200, 1_024, 1e-6)):
        served = certify(signatures, images, n0=n0, n=n, alpha=alpha, seed=seeds)
        for i, seed in enumerate(seeds.tolist()):
            one = smoothed.certify(images[i : i + 1], n0, n, alpha, seed, indices=[0])
            assert served["class_id"][i] == one.label[0] and served["samples"][i] == one.samples[0]
            assert served["p_lower"][i] == one.p_lower[0]
            radius = np.float64(served["radius"][i])
            assert radius <= one.radius[0] < np.nextafter(served["radius"][i], np.float32(9), dtype=np.float32)


def test_an_answer_does_not_depend_on_its_company(exported, rng):
    _, _, signatures = exported
    images = grid_images(rng, 5, 8)
    for name in ("serving_default", "predict", "moments"):
        together = {k: v.numpy() for k, v in signatures[name](images=tf.constant(images)).items()}
        again = {k: v.numpy() for k, v in signatures[name](images=tf.constant(images[[3, 1]])).items()}
        for key, value in together.items():
            same = np.array_equal if value.dtype != np.float32 or name != "moments" else np.allclose
            assert same(value[[3, 1]], again[key]), (name, key)
    assert len(set(signatures["serving_default"](images=tf.constant(images))["p_lower"].numpy())) > 1


def test_the_default_noise_depends_on_a_secret(exported, rng, tmp_path):
    smoothed, _, signatures = exported
    images = tf.constant(grid_images(rng, 8, 8))
    other = export(smoothed, tmp_path / "m" / "1", None, DEFAULTS, key=(1, 3))
    here = signatures["serving_default"](images=images)["p_lower"].numpy()
    there = tf.saved_model.load(str(other)).signatures["serving_default"](images=images)["p_lower"].numpy()
    assert not np.array_equal(here, there)
    # A bit of the image changes all of its noise.
    nearly = images.numpy()
    nearly[:, 0, 0, 0] = (np.round(nearly[:, 0, 0, 0] * 255) + 1) % 256 / np.float32(255)
    assert not np.array_equal(here, signatures["serving_default"](images=nearly)["p_lower"].numpy())


def test_labels_names_and_metadata(exported, rng):
    _, folder, signatures = exported
    answer = signatures["serving_default"](images=tf.constant(grid_images(rng, 6, 8)))
    for class_id, label in zip(answer["class_id"].numpy(), answer["label"].numpy(), strict=True):
        assert label.decode() == ("abstain" if class_id == -1 else "abcdefghij"[class_id])
    about = json.loads((folder / "assets.extra" / "metadata.json").read_text())
    assert about["sigma"] == 0.25 and about["data"] == "x" and about["class_names"] == list("abcdefghij")
    assert about["n"] == 700 and about["noise"] == "lattice" and "key" not in about
    assert set(about["signatures"]) == set(signatures)
    logits = signatures["logits"](images=tf.constant(grid_images(rng, 2, 8)))["logits"]
    assert logits.shape == (2, 10)


def test_certify_at_decides_as_in_python(exported, rng):
    smoothed, _, signatures = exported
    images = grid_images(rng, 12, 8)
    for radius in (0.0, 0.1, 0.4):
        served = signatures["certify_at"](
            images=tf.constant(images), **columns(12, radius=radius, alpha=0.001, seed=np.arange(12))
        )
        for i in range(12):
            one = smoothed.certify_at(images[i : i + 1], radius, 0.001, 5_000, 64, i, indices=[0], give_up=0)
            assert served["certified"].numpy()[i] == one.certified[0]
            assert served["class_id"].numpy()[i] == one.label[0]
    # It stops early: far fewer than the most it could draw.
    assert served["samples"].numpy().mean() < 2_500


def test_the_graphs_wealth_is_pythons(rng):
    trials = rng.integers(1, 100_000, 300)
    for p0 in (0.5, 0.84, 0.977, 0.9999):
        spread = 4 * np.sqrt(p0 * (1 - p0) / trials) * rng.normal(size=300)
        hits = rng.binomial(trials, np.clip(p0 + spread, 0, 1))
        for above in (True, False):
            exact = one_sided_log_wealth(hits, trials, p0, above)
            served = one_sided_log_wealth(hits, trials, p0, above, on=TENSORFLOW).numpy()
            # Within less than the decision's margin of 1e-6 wherever the limit is near.
            near = np.isfinite(exact) & (np.abs(exact) < 50)
            assert near.sum() > 100
            np.testing.assert_allclose(served[near], exact[near], atol=5e-7)


def test_the_graphs_required_probability_is_pythons():
    """Phi(radius / sigma) rounded up: never below the exact one, and within a few ulps of Python's."""
    radius = np.linspace(0, 4, 400)
    served = required_probability(radius, 0.5, TENSORFLOW).numpy()
    np.testing.assert_allclose(served, required_probability(radius, 0.5), rtol=1e-14)
    with mpmath.workdps(40):
        exact = [mpmath.ncdf(mpmath.mpf(float(r)) / 0.5) for r in radius]
        assert all(s >= e or s == 1.0 - 1e-16 for s, e in zip(served, exact, strict=True))


def test_predict_is_pythons(exported, rng):
    smoothed, _, signatures = exported
    images = grid_images(rng, 20, 8)
    served = signatures["predict"](images=tf.constant(images))
    labels, votes = served["class_id"].numpy(), served["votes"].numpy()
    assert ((votes > 0) & (votes <= 300)).all() and (labels >= -1).all()
    # SciPy's exact test on made-up counts, at and around the limit.
    from covkeras.exporting.graphs import ServedGraphs

    graphs = ServedGraphs(smoothed, 5_000, (1, 2))
    for first in range(150, 230):
        counts = np.zeros(10, np.int64)
        counts[3], counts[7] = first, 300 - first
        graphs._votes = lambda *a, counts=counts: tf.constant(counts)
        label, _ = graphs.predict(tf.constant(images[:1]), 300, 0.001)
        sure = first > 150 and scipy.stats.binomtest(first, 300, 0.5).pvalue <= 0.001
        assert label.numpy()[0] == (3 if sure else -1)
        assert top_two_differ(first, 300 - first, 0.001) == sure


def test_images_between_the_grid_get_a_smaller_radius(exported, rng):
    """By the distance to the grid: what holds of a ball around the rounded image holds of a smaller one in it."""
    _, _, signatures = exported
    images = np.clip(grid_images(rng, 4, 8), 0.1, 0.9)
    images = (np.round(images * 255) / 255).astype(np.float32)
    moved = (images + np.float32(0.3 / 255)).astype(np.float32)
    there, near = certify(signatures, images), certify(signatures, moved)
    assert np.array_equal(there["p_lower"], near["p_lower"])
    distance = 0.3 / 255 * 8
    lost = there["radius"].astype(np.float64) - near["radius"]
    certified = near["radius"] > 0
    assert certified.any() and (lost[certified] >= distance).all() and (lost[certified] < 1.01 * distance + 1e-4).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n": 5_001}, r"n must lie in \[1, 5000\]"),
        ({"n": 0}, r"n must lie in \[1, 5000\]"),
        ({"n0": -1}, r"n0 must lie in \[1, 5000\]"),
        ({"alpha": 0.0}, r"alpha must lie in \(0, 1\)"),
        ({"alpha": math.nan}, r"alpha must lie in \(0, 1\)"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(exported, change, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        certify(exported[2], np.zeros((2, 8, 8, 1), np.float32), **change)


@pytest.mark.parametrize("value, message", [(math.nan, "got NaN"), (1.5, "must lie in"), (-0.1, "must lie in")])
def test_bad_images_are_refused(exported, value, message):
    images = np.zeros((2, 8, 8, 1), np.float32)
    images[1, 0, 0, 0] = value
    for name in ("serving_default", "predict"):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            exported[2][name](images=tf.constant(images))


def test_image_files_are_decoded(exported, rng):
    _, _, signatures = exported
    images = grid_images(rng, 3, 8)
    files = [tf.io.encode_png(tf.cast(np.round(i * 255), tf.uint8)).numpy() for i in images]
    by_bytes = signatures["serving_bytes"](image_bytes=tf.constant(files))
    by_floats = signatures["serving_default"](images=tf.constant(images))
    assert all(np.array_equal(by_bytes[k].numpy(), by_floats[k].numpy()) for k in by_floats)
    colour = tf.io.encode_jpeg(tf.cast(rng.integers(0, 256, (16, 12, 3)), tf.uint8)).numpy()
    with pytest.raises(tf.errors.InvalidArgumentError, match="image must be 8 x 8"):
        decoded(tf.constant([colour]), (8, 8, 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image must be 8 x 8[\s\S]*16 12"):
        signatures["serving_bytes"](image_bytes=tf.constant([colour]))
    resized = decoded(tf.constant([colour]), (8, 8, 1), resize=True).numpy()
    assert resized.shape == (1, 8, 8, 1) and np.array_equal(np.round(resized * 255) / np.float32(255), resized)
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["serving_bytes"](image_bytes=tf.constant([b"no image"]))


def test_radii_are_rounded_down_to_float32(rng):
    radius = np.concatenate([rng.random(10_000) * 4, [0.0, 1.0, 1e-300]])
    down = rounded_down(tf.constant(radius)).numpy()
    assert down.dtype == np.float32 and (down.astype(np.float64) <= radius).all()
    assert (np.nextafter(down, np.float32(9)).astype(np.float64) > radius).all()


def operations(folder) -> list[str]:
    """Every op's type in the SavedModel: the graph's and its functions'."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graph = model.meta_graphs[0].graph_def
    return [n.op for n in graph.node] + [n.op for f in graph.library.function for n in f.node_def]


def test_no_python_in_the_graph(exported):
    ops = operations(exported[1])
    assert not [op for op in ops if op.startswith(("Py", "EagerPy")) or "NumpyFunction" in op]


def test_warm_up_requests_name_the_signatures(exported):
    from tensorflow_serving.apis import prediction_log_pb2

    _, folder, signatures = exported
    records = tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests"))
    requests = [prediction_log_pb2.PredictionLog.FromString(r.numpy()).predict_log.request for r in records]
    assert {r.model_spec.name for r in requests} == {"digits"}
    for request in requests:
        images = tf.make_ndarray(request.inputs["images"])
        signatures[request.model_spec.signature_name](images=tf.constant(images))


def test_a_version_is_never_changed_nor_half_there(exported, tmp_path, monkeypatch):
    smoothed, folder, _ = exported
    with pytest.raises(FileExistsError, match="a version is never changed"):
        export(smoothed, folder)
    with pytest.raises(ValueError, match="must end in a version"):
        export(smoothed, tmp_path / "digits")
    with pytest.raises(ValueError, match="class_names must be 10"):
        export(smoothed, tmp_path / "digits" / "1", ["a"])
    with pytest.raises(ValueError, match="key must be two whole numbers"):
        export(smoothed, tmp_path / "digits" / "1", key=(1,))
    with pytest.raises(ValueError, match="n must be a whole number from 1 to 500"):
        Defaults(n=1_000, max_samples=500)
    assert not list(tmp_path.iterdir())
    # Cut off at the last moment: nothing a server would load.
    monkeypatch.setattr("covkeras.exporting.saved_model._write_extra", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(smoothed, tmp_path / "digits" / "1")
    assert not list((tmp_path / "digits").iterdir())


def test_a_classifier_without_moment_rules_is_served_without_moments(tmp_path):
    images = keras.Input((8, 8, 1))
    model = keras.Model(images, layers.Dense(3)(layers.Flatten()(keras.ops.sort(images, axis=1))))
    folder = export(SmoothedClassifier(model, 0.25), tmp_path / "m" / "1")
    assert "moments" not in tf.saved_model.load(str(folder)).signatures


@pytest.mark.slow
def test_preact_resnet18_exports_without_unrolling(tmp_path):
    smoothed = SmoothedClassifier(models.preact_resnet18(), 0.5, batch_size=16)
    folder = export(smoothed, tmp_path / "resnet" / "1", defaults=Defaults(n0=8, n=20, n_predict=20, max_samples=64))
    answer = tf.saved_model.load(str(folder)).signatures["serving_default"](images=tf.zeros((1, 32, 32, 3)))
    assert answer["samples"].numpy()[0] == 28
    convolutions = operations(folder).count("Conv2D")
    # 20 convolutions, evaluated at most twice in a signature's graph; moments have a mean and a covariance.
    assert convolutions <= 20 * 14


RUNTIME = """
import ctypes, json, sys
library, folder, plan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tf = ctypes.CDLL(library)
P, c = ctypes.c_void_p, ctypes
for name in ("NewStatus", "NewSessionOptions", "NewGraph", "LoadSessionFromSavedModel", "AllocateTensor", "TensorData",
             "GraphOperationByName", "Message"):
    getattr(tf, "TF_" + name).restype = P
tf.TF_TensorByteSize.restype = c.c_size_t
class Output(c.Structure):
    _fields_ = [("oper", P), ("index", c.c_int)]
status = P(tf.TF_NewStatus())
def check():
    assert tf.TF_GetCode(status) == 0, c.string_at(tf.TF_Message(status)).decode()
graph = P(tf.TF_NewGraph())
tags = (c.c_char_p * 1)(b"serve")
options = P(tf.TF_NewSessionOptions())
session = P(tf.TF_LoadSessionFromSavedModel(options, None, folder.encode(), tags, 1, graph, None, status))
check()
def output(name):
    op, _, index = name.partition(":")
    found = tf.TF_GraphOperationByName(graph, op.encode())
    assert found, op
    return Output(found, int(index or 0))
KINDS = {"float32": (1, c.c_float), "float64": (2, c.c_double), "int64": (9, c.c_int64)}
answers = {}
for signature, request in plan.items():
    feeds, tensors = [], []
    for name, kind, shape, values in request["inputs"]:
        code, ctype = KINDS[kind]
        dims = (c.c_int64 * len(shape))(*shape)
        tensor = P(tf.TF_AllocateTensor(code, dims, len(shape), c.c_size_t(len(values) * c.sizeof(ctype))))
        c.memmove(P(tf.TF_TensorData(tensor)), (ctype * len(values))(*values), len(values) * c.sizeof(ctype))
        feeds.append(output(name)); tensors.append(tensor)
    fetches = [output(name) for _, name, _ in request["outputs"]]
    results = (P * len(fetches))()
    tf.TF_SessionRun(session, None, (Output * len(feeds))(*feeds), (P * len(tensors))(*tensors), len(feeds),
                     (Output * len(fetches))(*fetches), results, len(fetches), None, 0, None, status)
    check()
    answers[signature] = {}
    for (key, _, kind), tensor in zip(request["outputs"], results):
        ctype = KINDS[kind][1]
        count = tf.TF_TensorByteSize(P(tensor)) // c.sizeof(ctype)
        answers[signature][key] = list((ctype * count).from_address(tf.TF_TensorData(P(tensor))))
assert "tensorflow" not in sys.modules and "numpy" not in sys.modules
print(json.dumps(answers))
"""


def test_the_c_runtime_gives_exactly_the_python_answers(exported, rng):
    """TF_LoadSessionFromSavedModel, the loader TF-Serving builds on, in a process without Python TensorFlow."""
    from tensorflow.core.protobuf import saved_model_pb2

    _, folder, signatures = exported
    images = grid_images(rng, 3, 8)
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    definitions = model.meta_graphs[0].signature_def
    numbers = {"n0": [50] * 3, "n": [700] * 3, "alpha": [0.001] * 3, "seed": [3, 1, 4]}
    kinds = {"images": "float32", "alpha": "float64", "class_id": "int64", "radius": "float32", "p_lower": "float64"}
    plan, expected = {}, {}
    for name in ("serving_default", "certify"):
        feeds = [("images", [3, 8, 8, 1], images.ravel().tolist())]
        feeds += [(k, [3], v) for k, v in numbers.items() if name == "certify"]
        keys = ("class_id", "radius", "p_lower", "samples")
        plan[name] = {
            "inputs": [(definitions[name].inputs[k].name, kinds.get(k, "int64"), s, v) for k, s, v in feeds],
            "outputs": [(k, definitions[name].outputs[k].name, kinds.get(k, "int64")) for k in keys],
        }
        extra = columns(3, **numbers) if name == "certify" else {}
        answer = signatures[name](images=tf.constant(images), **extra)
        expected[name] = {k: answer[k].numpy().tolist() for k in keys}
    # Found without importing it.
    library = Path(importlib.util.find_spec("tensorflow").origin).parent / "libtensorflow_cc.so.2"
    command = [sys.executable, "-S", "-c", RUNTIME, str(library), str(folder), json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_small_classifiers_batch_size_bounds_the_memory(tmp_path):
    """Samples come in chunks of batch_size: no tensor in the graph grows with n."""
    smoothed = SmoothedClassifier(small_classifier(), 0.25, batch_size=32)
    folder = export(smoothed, tmp_path / "m" / "1", defaults=Defaults(max_samples=1_000_000))
    signatures = tf.saved_model.load(str(folder)).signatures
    answer = certify(signatures, np.zeros((1, 8, 8, 1), np.float32), n=100_000)
    assert answer["samples"][0] == 100_050


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A classifier behind a denoiser that is told the level, exported at three sigmas: (smoothed by sigma, signatures,
    the weights' number in the SavedModel and in the model)."""
    keras.utils.set_random_seed(0)
    denoiser = models.dncnn((8, 8, 1), depth=3, width=4, conditioned=True)
    denoiser.set_weights([w + 0.05 * np.random.default_rng(0).normal(size=w.shape) for w in denoiser.get_weights()])
    classifier = models.lenet((8, 8, 1))
    each = [SmoothedClassifier(models.joined(denoiser, classifier, s), s, batch_size=128) for s in (0.25, 0.12, 0.5)]
    folder = export(each, tmp_path_factory.mktemp("several") / "1", defaults=DEFAULTS)
    loaded = tf.saved_model.load(str(folder))
    about = json.loads((folder / "assets.extra" / "metadata.json").read_text())
    assert about["sigmas"] == [0.25, 0.12, 0.5] and about["sigma"] == 0.25
    held = sum(v.shape.num_elements() for v in loaded.signatures["certify_sigma"].variables)
    assert held == denoiser.count_params() + classifier.count_params()
    return {s.sigma: s for s in each}, loaded.signatures


def test_each_request_chooses_its_sigma(several, rng):
    """As the smoothed classifier of that sigma, bit for bit, in one batch of all; another sigma is refused."""
    by_sigma, signatures = several
    images, sigmas = grid_images(rng, 5, 8), np.array([0.5, 0.12, 0.25, 0.5, np.float32(0.12)])
    numbers = columns(5, n0=50, n=700, alpha=0.001, seed=3)
    served = signatures["certify_sigma"](images=tf.constant(images), sigma=tf.constant(sigmas, tf.float64), **numbers)
    for i, sigma in enumerate(sigmas):
        one = by_sigma[round(float(sigma), 2)].certify(images[i : i + 1], 50, 700, 0.001, 3, indices=[0])
        assert served["class_id"][i] == one.label[0] and served["p_lower"][i] == one.p_lower[0]
        assert served["radius"][i].numpy() == rounded_down(tf.constant(one.radius[0])).numpy()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"sigma must be one of 0.25, 0.12, 0.5, as exported"):
        signatures["certify_sigma"](images=tf.constant(images), sigma=tf.constant([0.3] * 5, tf.float64), **numbers)


def test_the_best_of_several_sigmas_is_certified_at_its_share_of_alpha(several, rng):
    by_sigma, signatures = several
    images = grid_images(rng, 5, 8)
    served = signatures["certify_best"](images=tf.constant(images), **columns(5, n0=50, n=700, alpha=0.03, seed=3))
    for i in range(5):
        each = {s: one.certify(images[i : i + 1], 50, 700, 0.01, 3, indices=[0]) for s, one in by_sigma.items()}
        best = max(each, key=lambda s: each[s].radius[0])
        assert served["sigma"][i] == best and served["class_id"][i] == each[best].label[0]
        assert served["radius"][i].numpy() == rounded_down(tf.constant(each[best].radius[0])).numpy()
        assert served["samples"][i] == 3 * 750


def test_the_best_of_several_sigmas_is_wrong_no_more_often_than_alpha():
    """Simulated where the truth is known: p = 1/2 at k = 3 sigmas, so that every certificate is false. Taking the best
    at alpha each would err in about k alpha of the runs; at alpha / k it does in at most alpha. 20,000 runs at alpha
    .05: six standard deviations of the count above alpha are a false alarm below 1e-8."""
    from covkeras.certification.confidence import clopper_pearson_lower

    runs, n, k, alpha = 20_000, 200, 3, 0.05
    hits = np.random.default_rng(0).binomial(n, 0.5, size=(runs, k))
    false = [np.asarray(clopper_pearson_lower(hits, n, a) > 0.5).any(1).mean() for a in (alpha, alpha / k)]
    limit = alpha + 6 * math.sqrt(alpha * (1 - alpha) / runs)
    assert false[1] <= limit < false[0]


def test_sigmas_that_do_not_go_together_are_refused(tmp_path):
    small, other = small_classifier(classes=4), small_classifier(classes=5)
    a, b = SmoothedClassifier(small, 0.25), SmoothedClassifier(small, 0.25)
    with pytest.raises(ValueError, match="must have different sigmas"):
        export([a, b], tmp_path / "1")
    with pytest.raises(ValueError, match="same images, classes and noise"):
        export([a, SmoothedClassifier(other, 0.5)], tmp_path / "1")
    with pytest.raises(TypeError, match="a SmoothedClassifier, or a list of them"):
        export([small], tmp_path / "1")
    assert not (tmp_path / "1").exists()
