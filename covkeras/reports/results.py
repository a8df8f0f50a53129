"""Tables, plots and the HTML page of certified results. Readable in black and white and by the colour-blind."""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from covkeras.certification.certificates import average_certified_radius, certified_accuracy
from covkeras.experiments.recipes import Recipe
from covkeras.experiments.result import Result, steps_to
from covkeras.reports.pages import STYLES, html_table, legend, markdown, new_figure, page, picture, plain, png


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
        colour, style = STYLES[i % len(STYLES)]
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
        colour, style = STYLES[i % len(STYLES)]
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
) -> str:
    """Writes curve.png, fidelity_*.png, training.png, table.md and index.html; returns the terminal's tables."""
    folder.mkdir(parents=True, exist_ok=True)
    caption = (
        f"{recipe.data}, sigma {recipe.sigma:g}, n = {recipe.certify_n:,}, alpha {recipe.certify_alpha:g}"
        if recipe
        else ""
    )
    figures = {"curve": accuracy_plot(results, caption)}
    figures |= {f"fidelity_{i}": fidelity_plot(r) for i, r in enumerate(results) if r.fidelity}
    if histories and all(histories.values()):
        figures["training"] = history_plot(histories)
    images = {name: png(figure) for name, figure in figures.items()}
    for name, data in images.items():
        (folder / f"{name}.png").write_bytes(data)
    tables = [accuracy_table(results)]
    if any(r.fidelity for r in results):
        tables.append(fidelity_table(results))
    (folder / "table.md").write_text(f"# {title}\n\n{caption}\n\n" + "\n\n".join(map(markdown, tables)) + "\n")
    (folder / "index.html").write_text(_page(title, caption, tables, images, recipe))
    return "\n\n".join(map(plain, tables))


_NOTES = (
    "Certified accuracy at r: the share of test images predicted correctly with certified radius at least r. ACR: the "
    "average certified radius, 0 where wrong or abstained; it over-rewards easy images, so read it beside the curve. "
    "Certificates are by Monte Carlo; each is wrong with probability at most alpha.",
    "Propagated radii are estimates without samples, never certificates. The comparison leaves out images that were "
    "abstained on, those where the two name different classes, and those whose certified radius is capped by n.",
)


def _page(title, caption, tables, images, recipe) -> str:
    parts = [f"<p>{html.escape(caption)}</p>", picture("curve", images["curve"]), html_table(tables[0])]
    parts.append(f"<p class=note>{_NOTES[0]}</p>")
    if len(tables) > 1:
        parts += ["<h2>Propagated against certified radius</h2>", html_table(tables[1])]
        parts += [picture(n, images[n]) for n in images if n.startswith("fidelity")] + [
            f"<p class=note>{_NOTES[1]}</p>"
        ]
    if "training" in images:
        parts += ["<h2>Training</h2>", picture("training", images["training"])]
    if recipe:
        rows = [["field", "value"], *[[k, str(v)] for k, v in recipe.values().items()]]
        parts += ["<h2>Recipe</h2>", html_table(rows, numbers=False)]
    return page(title, parts)
