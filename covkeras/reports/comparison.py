"""What a comparison found: one table, certified accuracy by radius, the cost of a step, radius against cost."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from covkeras.certification.certificates import average_certified_radius, certified_accuracy
from covkeras.experiments.comparing import Comparison, Outcome
from covkeras.experiments.result import Result
from covkeras.reports import shares, statements
from covkeras.reports.pages import legend, new_figure, style_of
from covkeras.reports.report import Report, Section
from covkeras.reports.results import (
    FIDELITY_NOTE,
    counted_radii,
    fidelity_plot,
    fidelity_table,
    figures_of,
    table_radii,
)

_NOTE = (
    "Certified accuracy at r: the share of the images predicted correctly with certified radius at least r. ACR: the "
    "average certified radius, 0 where wrong or abstained; it over-rewards easy images. Gain: ACR less the first "
    "method's, with the standard error of the difference image by image, which does not know how seeds differ. Clean "
    "accuracy: of the classifier itself, without noise, on the whole test split. With several seeds: mean and, after "
    "the sign, their standard deviation. Step cost: the time of a training step over Gaussian augmentation's, median "
    "of interleaved rounds in one process; an epoch's seconds: its steps at Gaussian augmentation's median time, times "
    "the cost."
)


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def _gain(outcome: Outcome, first: Outcome) -> str:
    """The mean over images of the radius less the first method's on the same image, and its standard error."""
    return "-" if outcome is first else "{:+.3f} ({:.3f})".format(*gains(outcome.results, first.results))


def gains(results: Sequence[Result], others: Sequence[Result]) -> tuple[float, float]:
    """The mean over images of the certified radius less the others' on the same image, seeds averaged, and its
    standard error over the images. Raises ValueError: they are of different images."""
    if not all(np.array_equal(r.indices, results[0].indices) for r in (*results, *others)):
        raise ValueError(f"{results[0].name} and {others[0].name} are of different images: certify the same ones.")

    def radii(seeds):
        return np.mean([counted_radii(r) for r in seeds], 0)

    gain = radii(results) - radii(others)
    return float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))


def comparison_table(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Returns a header and one row per method, in the order given."""
    radii = table_radii([r for o in outcomes for r in o.results])
    ends = ["clean", "epochs", "s/epoch", "step cost", "seeds"]
    rows = [["method", "ACR", "gain (s.e.)", *[f"acc at {r:g}" for r in radii], *ends]]
    for o in outcomes:
        acr = [average_certified_radius(r.certificates, r.labels) for r in o.results]
        accuracy = np.array([certified_accuracy(r.certificates, r.labels, radii) for r in o.results])
        rows.append(
            [
                o.entry.label,
                _spread(acr, 3),
                _gain(o, outcomes[0]),
                *[_spread(column, 3) for column in accuracy.T],
                _spread(o.clean, 4),
                str(o.entry.recipe.epochs),
                f"{o.epoch_seconds:.1f}",
                f"{np.median(o.cost.ratios):.2f}",
                str(len(o.results)),
            ]
        )
    return rows


def curves(outcomes: Sequence[Outcome], caption: str = ""):
    """Returns certified accuracy against radius: a curve per method, the mean over seeds, least to most shaded."""
    figure, axes = new_figure()
    largest = max(float(r.certificates.radius.max(initial=0.0)) for o in outcomes for r in o.results)
    radii = np.linspace(0, 1.05 * largest or 1.0, 500)
    for i, o in enumerate(outcomes):
        colour, style = style_of(i)
        lines = np.array([certified_accuracy(r.certificates, r.labels, radii) for r in o.results])
        axes.plot(radii, lines.mean(0), color=colour, linestyle=style, linewidth=1.8, label=o.entry.label)
        if len(lines) > 1:
            axes.fill_between(radii, lines.min(0), lines.max(0), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="certified radius (Euclidean norm, pixels in [0, 1])", ylabel="certified accuracy", ylim=(0, 1))
    axes.set_xlim(0, radii[-1])
    axes.set_title(caption, fontsize=10)
    legend(figure, axes, 8)
    return figure


def cost_bars(ratios: dict[str, Sequence[float]]):
    """Returns step costs as bars, the middle half of the rounds as whiskers (the paper's Figure 5).

    ratios: method -> its step times over Gaussian augmentation's, round by round.
    """
    figure, axes = new_figure()
    low, middle, high = np.array([np.quantile(r, [0.25, 0.5, 0.75]) for r in ratios.values()]).T
    at = np.arange(len(ratios))[::-1]
    axes.barh(at, middle, xerr=[middle - low, high - middle], color="#9ecae1", edgecolor="#333333", capsize=3)
    for y, value, end in zip(at, middle, high, strict=True):
        axes.annotate(f"{value:.2f}", (end, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(at, list(ratios), fontsize=8)
    axes.set(xlabel="step time over Gaussian augmentation's", xlim=(0, 1.15 * high.max()))
    axes.grid(visible=False, axis="y")
    return figure


def frontier(outcomes: Sequence[Outcome]):
    """Returns ACR against the training's whole cost, in epochs of Gaussian augmentation; a point per seed."""
    figure, axes = new_figure()
    costs = [float(np.median(o.cost.ratios)) * o.entry.recipe.epochs for o in outcomes]
    for i, (o, cost) in enumerate(zip(outcomes, costs, strict=True)):
        colour, _ = style_of(i)
        acr = [average_certified_radius(r.certificates, r.labels) for r in o.results]
        marker = "osD^vPX"[i % 7]
        axes.scatter([cost] * len(acr), acr, s=40, marker=marker, facecolors="none", edgecolors=colour, linewidths=1.4)
        axes.scatter([], [], s=40, marker=marker, facecolors="none", edgecolors=colour, label=o.entry.label)
    axes.set_xscale("log")
    # Costs closer than a tenth would write over each other.
    ticks = [c for i, c in enumerate(sorted(costs)) if i == 0 or c > 1.1 * sorted(costs)[i - 1]]
    axes.set_xticks(ticks, [f"{c:.0f}" for c in ticks])
    axes.minorticks_off()
    axes.set(xlabel="cost of training, in epochs of Gaussian augmentation", ylabel="average certified radius")
    legend(figure, axes, 8)
    return figure


def write_comparison_report(
    comparison: Comparison, outcomes: Sequence[Outcome], diverged: Mapping[str, str] | None = None
) -> str:
    """Writes curves.png, cost.png, frontier.png, fidelity_*.png, table.md and index.html; returns the tables.

    diverged: {method: what its training ended with}, of those that are left out.
    """
    recipe = comparison.recipe
    budget = f"{comparison.seconds:g} s of training each" if comparison.seconds else f"{recipe.epochs} epochs"
    caption = (
        f"{recipe.data}, {recipe.model}, sigma {recipe.sigma:g}, {budget}, {len(outcomes[0].results[0].labels)} test "
        f"images, n = {recipe.certify_n:,}, alpha {recipe.certify_alpha:g}"
    )
    firsts = [o.results[0] for o in outcomes]
    costs = {"cost": cost_bars({o.entry.label: o.cost.ratios for o in outcomes}), "frontier": frontier(outcomes)}
    fidelity = {f"fidelity_{i}": fidelity_plot(r) for i, r in enumerate(firsts) if r.fidelity}
    rows = [["method", "field", "value"]]
    for o in outcomes:
        rows += [[o.entry.label, k, str(v)] for k, (v, _) in o.entry.recipe.diff(recipe).items()]
    sections = [
        Section("", figures={"curves": curves(outcomes), **costs}),
        Section("Certified", rows=comparison_table(outcomes), note=_NOTE),
        shares.section({o.entry.label: o.results for o in outcomes}),
        *statements.sections(firsts, table_radii(firsts)),
        Section("Propagated against certified radius", "", fidelity, fidelity_table(firsts), FIDELITY_NOTE)
        if fidelity
        else Section(),
        Section("Where the methods' recipes differ from the comparison's", rows=rows, words=True),
    ]
    if diverged:
        lost = [["method", "left out: its training diverged"], *map(list, diverged.items())]
        sections.insert(1, Section("Left out", rows=lost, words=True))
    data = {"recipe": json.loads(recipe.to_json()), "seconds": comparison.seconds, "rows": comparison_figures(outcomes)}
    return Report(f"{recipe.name}: {len(outcomes)} methods", caption, sections, data).write(comparison.path / "report")


def comparison_figures(outcomes: Sequence[Outcome]) -> list[dict]:
    """Returns the figures as data: a row per method and seed, with the gain over the first method of the same seed."""
    found = []
    for o in outcomes:
        for i, (result, clean) in enumerate(zip(o.results, o.clean, strict=True)):
            gain = None if o is outcomes[0] else gains([result], [outcomes[0].results[i]])
            found.append(
                {
                    **figures_of(result),
                    "method": o.entry.label,
                    "seed": o.seeds[i],
                    "gain": gain and gain[0],
                    "gain se": gain and gain[1],
                    "clean": clean,
                    "epochs": o.entry.recipe.epochs,
                    "step cost": float(np.median(o.cost.ratios)),
                    "recipe": json.loads(o.entry.recipe.to_json()),
                }
            )
    return found
