import dataclasses
import itertools

import numpy as np
import pytest
from conftest import grid_images, small_classifier

from covkeras import MomentNetwork, SmoothedClassifier
from covkeras.certification import Certificates
from covkeras.diagnostics import Fidelity, fidelity
from covkeras.experiments import recipes
from covkeras.experiments.result import Result
from covkeras.reports import results as report
from covkeras.reports.pages import png, style_of


def result(name="ours", radii=(0.6, 0.3, 0.0)):
    label = [0, 1, -1]
    parts = [Certificates.single(label[i], r, 0.9, 110, 0.1) for i, r in enumerate(radii)]
    radius = np.array([0.5, 0.4, 0.1])
    f = Fidelity("paper", radius, np.array(radii), np.array(radii) > 0)
    return report.Result(name, np.array([0, 1, 1]), Certificates.concatenate(parts), [f])


def test_tables_by_hand():
    rows = report.accuracy_table([result()])
    assert rows[0] == ["method", "ACR", "acc at 0", "acc at 0.25", "acc at 0.5", "abstained", "images"]
    assert rows[1] == ["ours", "0.3000", "0.667", "0.667", "0.333", "0.333", "3"]
    assert report.plain(rows).splitlines()[1].split() == rows[1]
    assert report.markdown(rows).splitlines()[1] == "|---|---:|---:|---:|---:|---:|---:|"


def test_fidelity_by_hand():
    f = Fidelity("x", np.array([1.0, 2.0, 3.0, 9.0]), np.array([0.5, 1.0, 3.0, 0.1]), np.array([True] * 3 + [False]))
    assert f.rank_correlation == pytest.approx(1.0) and f.median_ratio == pytest.approx(2.0)


def test_fidelity_of_a_linear_network_is_one(rng):
    """On a linear classifier both estimates equal the true radius: certificates lie just below it."""
    import keras
    from keras import layers

    classifier = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(2)])
    images = grid_images(rng, 40, 4)
    certificates = SmoothedClassifier(classifier, 0.25).certify(images, 100, 20_000, 0.001)
    for f in fidelity(MomentNetwork(classifier, 0.25, 0.0), images, certificates, images[:8]):
        # A certificate is below the truth by the bound's width: on the median image here, less than 15 %.
        assert 0.99 < f.median_ratio < 1.15 and f.rank_correlation > 0.98


def test_fidelity_leaves_out_capped_radii(rng):
    network = MomentNetwork(small_classifier(), 0.5)
    images = rng.random((6, 8, 8, 1)).astype("float32")
    label = np.asarray(network(images).mean).argmax(1)
    radii = [0.1, 0.7, 0.7, 0.2, 0.7, 0.3]
    certificates = Certificates.concatenate(
        Certificates.single(k, r, 0.9, 1, 0.0) for k, r in zip(label, radii, strict=True)
    )
    paper = fidelity(network, images, certificates, images)[0]
    assert paper.compared.tolist() == [True, False, False, True, False, True]


def test_report_folder_is_complete_and_the_page_stands_alone(tmp_path):
    histories = {"ours": [{"epoch": "0", "classification_loss": "1.5", "accuracy": "0.5"}]}
    text = report.write_report(tmp_path, [result(), result("<b>", (0.2, 0.1, 0.0))], recipes.find("digits"), histories)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "curve.png", "fidelity_0.png", "fidelity_1.png", "index.html", "p_A.png", "results.json", "table.md",
        "training.png",
    ]  # fmt: skip
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64") == 5 and "&lt;b&gt;" in page and "certify_alpha" in page
    assert "ours" in text and "0.300" in text and "rank correlation" in text


def test_the_shares_are_of_the_right_class_alone():
    """Counted by hand: two right, one wrong, one abstained on; a log without p_A has no picture."""
    from covkeras.reports import shares

    each = [(1, 0.92), (1, 0.61), (0, 0.97), (-1, 0.4)]
    known = Certificates.concatenate(Certificates.single(c, 0.1, p_lower=p, samples=1, seconds=0.0) for c, p in each)
    one = Result("ours", np.ones(4, int), known)
    counts = np.array(shares.shares_of([one, one]))
    assert counts.sum() == 0.5 and counts[36] == counts[24] == 0.25 and len(counts) == 40
    assert "p_A" in shares.section({"ours": [one]}).figures
    lost = Result("log", np.ones(4, int), dataclasses.replace(known, p_lower=np.full(4, np.nan)))
    assert not shares.section({"ours": [one], "log": [lost]}).figures
    assert "p_A" in report.figures_of(one) and "p_A" not in report.figures_of(lost)


def test_small_classifier_report_without_any_certificate(tmp_path):
    nothing = result(radii=(0.0, 0.0, 0.0))
    assert "0.000" in report.write_report(tmp_path, [nothing])


def test_fidelity_leaves_out_abstentions(rng):
    network = MomentNetwork(small_classifier(), 0.5)
    images = rng.random((5, 8, 8, 1)).astype("float32")
    none = Certificates.concatenate(Certificates.single(-1, 0.0, 0.4, 1, 0.0) for _ in range(5))
    for f in fidelity(network, images, none, images):
        assert not f.compared.any() and np.isnan(f.rank_correlation) and np.isnan(f.median_ratio)


@pytest.mark.parametrize("count", [1, 9, 60])
def test_many_curves_have_a_legend_without_a_warning(count, rng):
    """Warnings are errors here: matplotlib's of a layout that collapsed."""
    results = [result(f"a_rather_long_name_of_method_{i}", rng.uniform(0.1, 1, 3)) for i in range(count)]
    figure = report.accuracy_plot(results)
    assert png(figure).startswith(b"\x89PNG")
    axes = figure.axes[0].get_position()
    assert axes.height * figure.get_size_inches()[1] > 2.5


def test_no_two_of_many_methods_are_drawn_alike():
    drawn = [style_of(i) for i in range(49)]
    assert len(set(drawn)) == 49
    # One after another differ in both, so that a picture without colours is read, too.
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in itertools.pairwise(drawn))


@pytest.mark.parametrize(("samples", "said"), [((10_100, 100_100), True), ((10_100, 10_100), False), ((0, 0), False)])
def test_logs_of_unequal_samples_are_told(samples, said, tmp_path):
    """A log's largest radius grows with n: two logs of another n are not alike, whatever their methods."""
    parts = [Certificates.single(1, 0.5, p_lower=0.9, samples=count, seconds=0.1) for count in samples]
    results = [report.Result(name, np.ones(1, int), part) for name, part in zip("ab", parts, strict=True)]
    words = "Samples of an image, in the mean: a 10,100, b 100,100."
    assert (words in report.shown(results)) == said
    report.write_report(tmp_path, results)
    assert (words in (tmp_path / "index.html").read_text(encoding="utf-8")) == said


def test_logs_of_other_images_are_told():
    part = Certificates.concatenate([Certificates.single(1, 0.5, p_lower=0.9, samples=100, seconds=0.1)] * 3)
    first, second, same = (
        Result(name, np.ones(3, int), part, indices=np.array(at))
        for name, at in (("a", [0, 1, 2]), ("b", [2, 1, 5]), ("c", [2, 0, 1]))
    )
    assert "Not of the same images: 2 are in all of them" in report.shown([first, second])
    assert "Not of the same images" not in report.shown([first, same])
