"""What may be said of all images, from those that were certified: bounds with a confidence, classifiers in pairs."""

from collections.abc import Sequence

import numpy as np

from covkeras.certification.certificates import certified_accuracy
from covkeras.certification.statements import certified_accuracy_lower, compare_certified, images_needed
from covkeras.experiments.result import Result
from covkeras.reports.report import Section

BETA = 0.05
NOTE = (
    "At least: a lower bound on the share of all images, of which those certified were drawn at random, on which the "
    "smoothed classifier is right within the radius; over images and noise, at each radius by itself wrong with "
    f"probability at most {BETA:g}. Certificates that may be false (each with probability alpha) are accounted for."
)
PAIRED_NOTE = (
    "Image by image on the same images: how many one of the two certifies at the radius and the other does not, the "
    "difference of their certified accuracies with its standard error, and McNemar's exact test. Of a dozen radii one "
    "in twenty has p below 0.05 by chance."
)


def bounds_of(result: Result, radii: Sequence[float]) -> dict[str, float]:
    """Returns lower bounds of certified accuracy over images and noise, as data; none where there is none."""
    if result.alpha is None or result.silent:
        return {}
    how = {"alpha": result.alpha, "beta": BETA, "shared_noise": result.shared_noise}
    bounds = certified_accuracy_lower(result.certificates, result.labels, radii, **how)
    return {f"at least at {r:g}": float(b) for r, b in zip(radii, bounds, strict=True)}


def statements_table(results: Sequence[Result], radii: Sequence[float]) -> list[list[str]]:
    """Returns a header and one row per result that says something of all images: lower bounds of certified accuracy,
    and the images that would know the largest of them to one percent; empty where there is none."""
    rows = []
    for result in results:
        bounds = bounds_of(result, radii).values()
        if not bounds:
            continue
        accuracies = certified_accuracy(result.certificates, result.labels, radii)
        # The accuracy that is hardest to know is the nearest to a half.
        hardest = float(min(accuracies, key=lambda a: abs(a - 0.5)))
        # Rounded down: a bound stays one.
        row = [result.name, *[f"{np.floor(1000 * b) / 1000:.3f}" for b in bounds], str(images_needed(hardest))]
        rows.append([*row, str(len(result.labels))])
    head = ["certified accuracy, 95 %", *[f"at {r:g}, at least" for r in radii], "images for ±1 %", "images"]
    return [head, *rows] if rows else []


def nothing_of_all(results: Sequence[Result]) -> str:
    """Returns why some of the results say nothing of other images, a sentence for each; empty where all do."""
    return "\n".join(f"{r.name}: {r.silent}" for r in results if r.silent)


def paired_table(results: Sequence[Result], radii: Sequence[float]) -> list[list[str]]:
    """Returns a header and a row for each result beside the first at each radius, on the images that both have; none
    for those of an interrupted sequential test, which are there because they were easily decided."""
    rows = [["first", "second", "radius", "first alone", "second alone", "difference (s.e.)", "p"]]
    for other in results[1:]:
        here, there = _common(results[0], other)
        if not len(here) or results[0].missing or other.missing:
            continue
        labels = results[0].labels[here]
        first, second = results[0].certificates.take(here), other.certificates.take(there)
        for radius in radii:
            found = compare_certified(first, second, labels, radius)
            said = f"{found.difference:+.3f} ({found.error:.3f})"
            counts = [str(found.first_only), str(found.second_only)]
            rows.append([results[0].name, other.name, f"{radius:g}", *counts, said, f"{found.p_value:.2g}"])
    return rows if len(rows) > 1 else []


def _common(first: Result, second: Result) -> tuple[np.ndarray, np.ndarray]:
    """The places of the images that both results have, in the first and in the second."""
    if first.indices is None or second.indices is None:
        return np.zeros(0, int), np.zeros(0, int)
    _, here, there = np.intersect1d(first.indices, second.indices, return_indices=True)
    same = first.labels[here] == second.labels[there]
    return (here, there) if same.all() else (here[:0], there[:0])


def sections(results: Sequence[Result], radii: Sequence[float]) -> list[Section]:
    """Returns a report's sections of both tables, those that there is something to say in."""
    made = []
    rows, why_not = statements_table(results, radii), nothing_of_all(results)
    if rows or why_not:
        note = f"{NOTE if rows else ''} {why_not}".strip()
        made.append(Section("What the images say of all", rows=rows, note=note, quiet=True))
    some = [r for r in radii if r > 0][:: max(1, len(radii) // 6)]
    if rows := paired_table(results, some):
        made.append(Section("In pairs", rows=rows, note=PAIRED_NOTE, quiet=True))
    return made
