"""Tables, plots and the HTML page of certified results. Readable in black and white and by the colour-blind."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from covkeras.certification.certificates import average_certified_radius, certified_accuracy
from covkeras.experiments.recipes import Recipe
from covkeras.experiments.result import Result, steps_to
from covkeras.reports import shares, statements
from covkeras.reports.pages import STYLES, legend, markdown, new_figure, plain, style_of
from covkeras.reports.report import Report, Section

__all__ = [
    "Result",
    "accuracy_table",
    "fidelity_table",
    "markdown",
    "plain",
    "table_radii",
    "write_report",
]


def table_radii(results: Sequence[Result]) -> list[float]:
    """Returns 0, 0.25, 0.5, ... up to the largest certified radius; in wider steps where they would be above 25."""
    return steps_to(max(float(r.certificates.radius.max(initial=0.0)) for r in results), 0.25, 25)


def accuracy_table(results: Sequence[Result]) -> list[list[str]]:
    """Returns a header and one row per result: ACR, certified accuracy at radii, abstentions, images."""
    radii = table_radii(results)
    rows = [["method", "ACR", *[f"acc at {r:g}" for r in radii], "abstained", "images"]]
    for result in results:
        accuracy = certified_accuracy(result.certificates, result.labels, radii)
        acr = average_certified_radius(result.certificates, result.labels)
        abstained = (result.certificates.label == -1).mean()
        rows.append(
            [result.name, f"{acr:.4f}", *[f"{a:.3f}" for a in accuracy], f"{abstained:.3f}", str(len(result.labels))]
        )
    return rows


def shown(results: Sequence[Result]) -> str:
    """Returns what the terminal shows of certified results: accuracy, what it says of all images, and in pairs."""
    tables = [accuracy_table(results), *(s.rows for s in statements.sections(results, table_radii(results)))]
    parts = [*(plain(rows) for rows in tables if rows), unlike(results), statements.nothing_of_all(results)]
    return "\n\n".join(filter(None, parts))


def unlike(results: Sequence[Result]) -> str:
    """Returns why the results' figures may not be set beside each other as they are, other images or other numbers of
    samples; empty where they may."""
    images = [set(r.indices.tolist()) for r in results if r.indices is not None]
    if images and len(images) == len(results) and any(one != images[0] for one in images):
        common = len(set.intersection(*images))
        said = f"Not of the same images: {common} are in all of them; figures are each of its own. {_samples(results)}"
        return said.strip()
    return _samples(results)


def _samples(results: Sequence[Result]) -> str:
    means = {r.name: float(r.certificates.samples.mean()) for r in results}
    known = [mean for mean in means.values() if mean > 0]
    if not known or max(known) <= 1.05 * min(known):
        return ""
    listed = ", ".join(f"{name} {mean:,.0f}" if mean > 0 else f"{name} unknown" for name, mean in means.items())
    return f"Samples of an image, in the mean: {listed}. Where their number is fixed, fewer cut the radii shorter."


def fidelity_table(results: Sequence[Result]) -> list[list[str]]:
    """Returns a header and one row per classifier and estimate: rank correlation, median ratio, images compared."""
    rows = [["classifier", "propagated radius by", "rank correlation", "median ratio", "images"]]
    for result in results:
        for f in result.fidelity:
            row = [
                result.name,
                f.name,
                f"{f.rank_correlation:.3f}",
                f"{f.median_ratio:.2f}",
                str(int(f.compared.sum())),
            ]
            rows.append(row)
    return rows


def accuracy_plot(results: Sequence[Result], caption: str = ""):
    """Returns the figure of certified accuracy against radius, one step curve per result."""
    figure, axes = new_figure()
    largest = max(float(r.certificates.radius.max(initial=0.0)) for r in results)
    radii = np.linspace(0, 1.05 * largest or 1.0, 500)
    for i, result in enumerate(results):
        colour, style = style_of(i)
        acr = average_certified_radius(result.certificates, result.labels)
        accuracy = certified_accuracy(result.certificates, result.labels, radii)
        axes.plot(radii, accuracy, color=colour, linestyle=style, linewidth=2, label=f"{result.name}, ACR {acr:.3f}")
    axes.set(xlabel="certified radius (Euclidean norm, pixels in [0, 1])", ylabel="certified accuracy", ylim=(0, 1))
    axes.set_xlim(0, radii[-1])
    axes.set_title(caption, fontsize=10)
    legend(figure, axes)
    return figure


def fidelity_plot(result: Result):
    """Returns the scatter of propagated against certified radius, one panel per estimate."""
    figure, panels = new_figure(len(result.fidelity))
    for i, (axes, f) in enumerate(zip(np.atleast_1d(panels), result.fidelity, strict=True)):
        certified, radius = f.certified[f.compared], f.radius[f.compared]
        axes.scatter(certified, radius, s=14, facecolors="none", edgecolors=STYLES[i][0], linewidths=0.9)
        end = max(certified.max(initial=0.1), 0.1) * 1.05
        axes.plot([0, end], [0, end], color="#888888", linewidth=1)
        axes.annotate("equal", (end, end), ha="right", va="bottom", color="#666666", fontsize=8)
        axes.set(xlabel="certified radius", ylabel="propagated radius", xlim=(0, end))
        axes.set_ylim(0, max(end, np.quantile(radius, 0.98) * 1.1 if len(radius) else end))
        axes.set_title(
            f"{f.name}\nrank correlation {f.rank_correlation:.3f}, median ratio {f.median_ratio:.2f}", fontsize=9
        )
    figure.suptitle(result.name, fontsize=10)
    return figure


def history_plot(histories: dict[str, list[dict[str, str]]]):
    """Returns the figure of loss and accuracy on the training images, by epoch."""
    figure, (left, right) = new_figure(2)
    for i, (name, rows) in enumerate(histories.items()):
        colour, style = style_of(i)
        epochs = [int(r["epoch"]) + 1 for r in rows]
        for axes, key in ((left, "classification_loss"), (right, "accuracy")):
            axes.plot(epochs, [float(r[key]) for r in rows], color=colour, linestyle=style, linewidth=1.8, label=name)
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)")
    right.set(xlabel="epoch", ylabel="training accuracy", ylim=(0, 1))
    legend(figure, left)
    return figure


def write_report(
    folder: Path,
    results: Sequence[Result],
    recipe: Recipe | None = None,
    histories: dict | None = None,
    title: str = "Certified accuracy",
    more: Sequence[Section] = (),
) -> str:
    """Writes the report of certified results: curve.png, fidelity_*.png, training.png and a report's files; returns
    the terminal's tables. more: sections of the caller's, below the curve."""
    caption = caption_of(recipe) if recipe else ""
    note = f"{CERTIFIED_NOTE} {unlike(results)}".strip()
    sections = [
        Section(figures={"curve": accuracy_plot(results, caption)}, rows=accuracy_table(results), note=note),
        shares.section({r.name: [r] for r in results}),
    ]
    sections += [*statements.sections(results, table_radii(results)), *more]
    if any(r.fidelity for r in results):
        figures = {f"fidelity_{i}": fidelity_plot(r) for i, r in enumerate(results) if r.fidelity}
        title_of_it = "Propagated against certified radius"
        sections.append(Section(title_of_it, figures=figures, rows=fidelity_table(results), note=FIDELITY_NOTE))
    if histories and all(histories.values()):
        sections.append(Section("Training", figures={"training": history_plot(histories)}))
    if recipe:
        rows = [["field", "value"], *[[k, str(v)] for k, v in recipe.values().items()]]
        sections.append(Section("Recipe", rows=rows, words=True))
    data = {"recipe": json.loads(recipe.to_json()) if recipe else None, "rows": [figures_of(r) for r in results]}
    return Report(title, caption, sections, data).write(folder)


def caption_of(recipe: Recipe) -> str:
    return f"{recipe.data}, sigma {recipe.sigma:g}, n = {recipe.certify_n:,}, alpha {recipe.certify_alpha:g}"


def figures_of(result: Result) -> dict:
    """Returns a result's figures as data: ACR and its standard error over images, certified accuracy, fidelity."""
    certificates, labels = result.certificates, result.labels
    radii = table_radii([result])
    accuracy = certified_accuracy(certificates, labels, radii)
    counted = counted_radii(result)
    return {
        "method": result.name,
        "images": len(labels),
        "ACR": average_certified_radius(certificates, labels),
        "ACR se": float(counted.std(ddof=1) / math.sqrt(len(labels))) if len(labels) > 1 else None,
        **{f"acc at {r:g}": float(a) for r, a in zip(radii, accuracy, strict=True)},
        **statements.bounds_of(result, radii),
        "abstained": float((certificates.label == -1).mean()),
        **({"p_A": shares.shares_of([result])} if shares.known([result]) else {}),
        "fidelity": {
            f.name: {
                "rank correlation": _finite(f.rank_correlation),
                "median ratio": _finite(f.median_ratio),
                "images": int(f.compared.sum()),
            }
            for f in result.fidelity
        },
    }


def counted_radii(result: Result) -> np.ndarray:
    """Returns what each image counts into the ACR, (images,): its radius, 0 where the class is wrong."""
    return np.where(result.certificates.label == result.labels, result.certificates.radius, 0.0)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


CERTIFIED_NOTE = (
    "Certified accuracy at r: the share of the images predicted correctly with certified radius at least r. ACR: the "
    "average certified radius, 0 where wrong or abstained; it over-rewards easy images, so read it beside the curve. "
    "Certificates are by Monte Carlo; each is wrong with probability at most alpha."
)
FIDELITY_NOTE = (
    "Propagated radii are estimates without samples, never certificates. The comparison leaves out images that were "
    "abstained on, those where the two name different classes, and those whose certified radius is capped by n."
)
