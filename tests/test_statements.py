"""What certificates of some images say of all, against scipy and by simulation where the truth is known."""

import json

import numpy as np
import pytest
import scipy.stats

from covkeras.certification import (
    Certificates,
    certified_accuracy_lower,
    clopper_pearson_lower,
    compare_certified,
    images_needed,
)
from covkeras.certification.logs import CertificateFile
from covkeras.commands.main import main
from covkeras.experiments import jobs
from covkeras.reports import results as report
from covkeras.reports.statements import paired_table, statements_table


def certificates(radii, labels=None):
    radii = np.asarray(radii, np.float64)
    labels = np.zeros(len(radii), int) if labels is None else np.asarray(labels)
    one = np.ones(len(radii))
    return Certificates(labels, radii, p_lower=one, samples=one.astype(int), seconds=one, void=0 * one.astype(int))


def test_the_bound_is_the_exact_one_less_what_may_be_false():
    given, labels = certificates([0.6] * 80 + [0.2] * 20), np.zeros(100, int)
    bound = certified_accuracy_lower(given, labels, [0.1, 0.5, 0.9], alpha=0.001)
    exact = [scipy.stats.beta.ppf(0.05, k, 100 - k + 1) if k else 0.0 for k in (100, 80, 0)]
    expected = [max(0.0, (e - 0.001) / 0.999) for e in exact]
    np.testing.assert_allclose(bound, expected, rtol=1e-6)
    assert (bound <= np.array(expected) + 1e-15).all()
    shared = certified_accuracy_lower(given, labels, [0.1, 0.5, 0.9], alpha=0.001, shared_noise=True)
    exact = [scipy.stats.beta.ppf(0.025, k, 100 - k + 1) - 0.04 if k else 0.0 for k in (100, 80, 0)]
    np.testing.assert_allclose(shared, exact, rtol=1e-6)
    # A wrong label counts for nothing, whatever its radius.
    wrong = certified_accuracy_lower(given, labels + 1, [0.1], alpha=0.001)
    assert wrong == 0.0


@pytest.mark.parametrize("shared", [False, True])
def test_the_bound_is_wrong_no_more_often_than_beta(shared):
    """Simulated where the truth is known: a share a of the images has p = .9, the others p just below p0 = Phi(r /
    sigma), so that each of these is certified falsely with nearly the probability alpha; alpha large, that it may show.
    A bound without alpha would fail in more than twice beta of the runs. 20,000 runs: six standard deviations of their
    count are a false alarm below 1e-8."""
    rng, runs, images, n, alpha, beta, a = np.random.default_rng(0), 20_000, 200, 400, 0.05, 0.1, 0.3
    p0 = scipy.stats.norm.cdf(0.5)
    good = rng.random((runs, images)) < a
    if shared:
        # One stream for all images: each of a kind has the same votes.
        hits = np.where(good, rng.binomial(n, 0.9, (runs, 1)), rng.binomial(n, p0, (runs, 1)))
    else:
        hits = rng.binomial(n, np.where(good, 0.9, p0))
    least = next(k for k in range(n) if clopper_pearson_lower(k, n, alpha) > p0)
    counted = (hits >= least).sum(1)
    # One bound for each number of images that may be counted.
    table = [
        certified_accuracy_lower(
            certificates(np.where(np.arange(images) < k, 0.5, 0.0)), np.zeros(images, int), [0.5], alpha, beta, shared
        )[0]
        for k in range(images + 1)
    ]
    wrong = (np.array(table)[counted] > a).mean()
    limit = beta + 6 * np.sqrt(beta * (1 - beta) / runs)
    assert wrong <= limit
    if not shared:
        naive = scipy.stats.beta.ppf(beta, counted, images - counted + 1)
        assert (naive > a).mean() > 2 * beta


def test_two_classifiers_are_compared_by_mcnemars_test():
    first = certificates([1.0] * 30 + [0.2] * 10 + [1.0] * 5)
    second = certificates([1.0] * 28 + [0.1] * 12 + [0.1] * 5)
    found = compare_certified(first, second, np.zeros(45, int), 0.5)
    assert (found.first_only, found.second_only, found.images) == (7, 0, 45)
    assert found.p_value == pytest.approx(scipy.stats.binomtest(7, 7, 0.5).pvalue)
    each = np.r_[np.zeros(28), 1, 1, np.zeros(10), np.ones(5)]
    assert found.difference == pytest.approx(each.mean())
    assert found.error == pytest.approx(each.std() / np.sqrt(45))
    assert compare_certified(first, first, np.zeros(45, int), 0.5).p_value == 1.0
    with pytest.raises(ValueError, match="second must have the first's 45 images, got 3"):
        compare_certified(first, certificates([1.0] * 3), np.zeros(45, int), 0.5)


@pytest.mark.parametrize(("accuracy", "within"), [(0.5, 0.01), (0.9, 0.02), (0.97, 0.01), (1.0, 0.01), (0.0, 0.05)])
def test_so_many_images_know_it_so_well_and_fewer_do_not(accuracy, within):
    count = images_needed(accuracy, within)

    def wide(images):
        interval = scipy.stats.binomtest(round(accuracy * images), images).proportion_ci(0.95, "exact")
        share = round(accuracy * images) / images
        return max(share - interval.low, interval.high - share)

    assert wide(count) <= within < wide(count - 1)
    assert all(wide(k) <= within for k in range(count, count + 20))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: certified_accuracy_lower(c, [0, 0], [0.5], 0.0), "alpha"),
        (lambda c: certified_accuracy_lower(c, [0, 0], [0.5], 0.001, 1.0), "beta"),
        (lambda c: certified_accuracy_lower(c, [0], [0.5], 0.001), "labels must have shape"),
        (lambda c: images_needed(1.5), "accuracy"),
        (lambda c: images_needed(0.5, 0.0), "within"),
    ],
)
def test_bad_statements_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(certificates([1.0, 1.0]))


def test_reports_say_it_with_the_alpha_that_is_known(tmp_path, capsys):
    known = report.Result("a", np.zeros(50, int), certificates([0.6] * 50), indices=np.arange(50), alpha=0.001)
    other = report.Result("b", np.zeros(40, int), certificates([0.3] * 40), indices=np.arange(10, 50))
    table = statements_table([known, other], [0.0, 0.5])
    assert [row[0] for row in table[1:]] == ["a"]
    # Rounded down: .9417 less what may be false.
    assert table[1][1] == "0.941"
    assert statements_table([other], [0.0]) == []
    # On the 40 images that both have.
    (row,) = paired_table([known, other], [0.5])[1:]
    assert row[:6] == ["a", "b", "0.5", "40", "0", "+1.000 (0.000)"] and float(row[6]) < 1e-10
    text = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "".join(f"{i}\t0\t0\t0.6\t1\t0:00:01\n" for i in range(50))
    (tmp_path / "cohen.tsv").write_text(text)
    assert main(["report", str(tmp_path / "cohen.tsv")]) == 0 and "at least" not in capsys.readouterr().out
    assert main(["report", str(tmp_path / "cohen.tsv"), "--alpha", "0.001", "--out", str(tmp_path / "page")]) == 0
    assert (
        "0.941" in capsys.readouterr().out
        and "What the images say of all" in (tmp_path / "page" / "index.html").read_text()
    )


def test_images_that_the_classifier_may_have_seen_say_nothing_of_others(tmp_path, capsys):
    seen = report.Result("a", np.zeros(50, int), certificates([0.6] * 50), alpha=0.001, split="train")
    test = report.Result("b", np.zeros(50, int), certificates([0.6] * 50), alpha=0.001)
    assert [row[0] for row in statements_table([seen, test], [0.0])[1:]] == ["b"]
    assert "at least at 0" not in report.figures_of(seen) and "at least at 0" in report.figures_of(test)
    assert "\na: images of the train split say nothing of others" in report.shown([seen, test])
    log = tmp_path / "held.tsv"
    log.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "0\t0\t0\t0.6\t1\t1.0\n", encoding="utf-8")
    for split, said in (("validation", "validation split say nothing"), ("test", "at 0, at least")):
        (tmp_path / "held.json").write_text(json.dumps({"alpha": 0.001, "split": split}), encoding="utf-8")
        assert main(["report", str(log), "--out", str(tmp_path / "page")]) == 0 and said in capsys.readouterr().out
        assert said in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("indices", "missing"),
    [([0, 20, 40, 60], 0), ([0, 20, 60, 80], 1), ([3, 1, 2, 0], 0), ([5, 9, 0], 7), ([7], 0), ([], 0), ([4, 4], 0)],
)
def test_images_that_a_sequential_test_has_not_decided_yet_are_missed(indices, missing):
    count = len(indices)
    given = {"labels": np.zeros(count, int), "certificates": certificates([0.6] * count), "indices": np.array(indices)}
    test = report.Result("a", **given, sequential=True)
    assert test.missing == missing
    assert test.silent.startswith(f"{missing} images between") if missing else not test.silent
    assert not report.Result("a", **given).silent
    # In pairs: with a whole one, whichever of the two it is.
    if count > 3:
        whole = report.Result("b", **given)
        assert [len(paired_table(pair, [0.5])) for pair in ([test, whole], [whole, test])] == [0 if missing else 2] * 2


def test_an_interrupted_sequential_log_is_no_fair_sample(tmp_path, capsys):
    """The hard images are decided last: stopped half-way, a log lacks them."""
    rows = [f"{i}\t0\t0\t0.6\t1\t1.0\n" for i in range(0, 60, 2) if i not in (6, 8, 30)]
    log, settings = tmp_path / "curve.tsv", {"alpha": 0.001, "split": "test", "radii": [0.0, 0.5]}
    log.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "".join(rows), encoding="utf-8")
    for radii, said in (([0.0, 0.5], "curve: 3 images between the first and the last are missing"), (None, "at least")):
        (tmp_path / "curve.json").write_text(json.dumps(settings | {"radii": radii}), encoding="utf-8")
        assert main(["report", str(log)]) == 0
        out = capsys.readouterr().out
        assert said in out and ("at least" in out) == (radii is None)


@pytest.mark.parametrize("sequentially", [False, True])
def test_no_running_figure_of_a_sequential_test_is_shown(sequentially, tmp_path, capsys):
    given = certificates([0.6] * 3)
    with CertificateFile(tmp_path / "c.tsv") as file:
        work = ((i, given.take([i])) for i in range(3))
        how = {"labels": np.zeros(3, int), "todo": np.arange(3), "stop": lambda: False, "title": "certify"}
        jobs.append_each(file, work, sequentially=sequentially, **how)
    assert ("ACR=0.600" in capsys.readouterr().err) != sequentially
    assert len((tmp_path / "c.tsv").read_text().splitlines()) == 4
