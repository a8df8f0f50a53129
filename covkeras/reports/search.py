"""What a search found: its trials, the objective against each hyperparameter, parallel coordinates, ablations."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from covkeras.experiments import jobs
from covkeras.experiments.tuning import CertifiedHyperModel, Trial
from covkeras.reports import results as report
from covkeras.reports.pages import STYLES, new_figure, style_of
from covkeras.reports.report import Report, Section


def trials_table(trials: Sequence[Trial], objective: str) -> list[list[str]]:
    """Returns a header and one row per trial, the best first."""
    rows = [["trial", objective, "status"]]
    return rows + [[t.name, "-" if t.score is None else f"{t.score:.4f}", t.status] for t in trials]


def accuracy_table(hypermodel: CertifiedHyperModel, trials: Sequence[Trial]) -> list[list[str]]:
    """Returns a row per trial as the reports have it: ACR, certified accuracy at radii, abstentions."""
    results = []
    for trial in trials:
        if trial.score is not None:
            _, labels, certificates = jobs.sorted_certificates(hypermodel.run_folder(trial.recipe).certificates_file)
            results.append(report.Result(trial.name, labels, certificates))
    return report.accuracy_table(results) if results else [["method", "ACR"]]


def ablations(hypermodel: CertifiedHyperModel, trials: Sequence[Trial]) -> dict[str, list[list[str]]]:
    """Returns, for each searched field, the trials that differ from the search's recipe in that field alone, in its
    order (the paper's Table 4); a field with fewer than two is left out."""
    tables, base = {}, hypermodel.recipe
    for one in hypermodel.space:
        others = [o.field for o in hypermodel.space if o.field != one.field]
        alone = [t for t in trials if t.score is not None and set(t.recipe.diff(base)) <= {one.field}]
        if len(alone) > 1:
            named = sorted(alone, key=lambda t: (str(type(getattr(t.recipe, one.field))), getattr(t.recipe, one.field)))
            fixed = ", ".join(f"{name} {getattr(base, name)}" for name in others)
            rows = [dataclasses.replace(t, name=f"{one.field} {getattr(t.recipe, one.field)}") for t in named]
            tables[f"{one.field}{f' ({fixed})' if fixed else ''}"] = accuracy_table(hypermodel, rows)
    return tables


def objective_plot(hypermodel: CertifiedHyperModel, trials: Sequence[Trial], beside: Sequence[Trial]):
    """Returns the objective against each searched field, one panel each, the baselines as lines."""
    done = [t for t in trials if t.score is not None]
    figure, panels = new_figure(len(hypermodel.space))
    for one, axes in zip(hypermodel.space, np.atleast_1d(panels), strict=True):
        at, ticks = _positions([getattr(t.recipe, one.field) for t in done])
        axes.scatter(at, [t.score for t in done], s=26, facecolors="none", edgecolors=STYLES[0][0], linewidths=1.2)
        for i, trial in enumerate([b for b in beside if b.score is not None], start=1):
            colour, style = style_of(i)
            axes.axhline(trial.score, color=colour, linestyle=style, linewidth=1.3, label=trial.name)
        axes.set(xlabel=one.field, ylabel=f"{hypermodel.objective.text}, validation images")
        if one.log:
            axes.set_xscale("log")
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks, rotation=20)
    np.atleast_1d(panels)[0].legend(frameon=False, fontsize=8)
    return figure


def parallel_plot(hypermodel: CertifiedHyperModel, trials: Sequence[Trial]):
    """Returns the parallel coordinates: a line per trial over the fields and the objective, darker the better."""
    done = sorted((t for t in trials if t.score is not None), key=lambda t: t.score)
    fields = [one.field for one in hypermodel.space]
    columns = [_positions([getattr(t.recipe, f) for t in done]) for f in fields]
    columns.append((np.array([t.score for t in done]), None))
    figure, axes = new_figure()
    heights = []
    for x, (at, ticks) in enumerate(columns):
        low, high = float(min(at)), float(max(at))
        heights.append((np.asarray(at, float) - low) / (high - low or 1.0))
        ends = (ticks[0], ticks[-1]) if ticks else (f"{low:.3g}", f"{high:.3g}")
        for y, text, side in ((-0.03, ends[0], "top"), (1.03, ends[1], "bottom")):
            axes.text(x, y, text, ha="center", va=side, fontsize=8)
        axes.axvline(x, color="#999999", linewidth=0.8)
    for i, line in enumerate(np.stack(heights, 1)):
        share = (i + 1) / len(done)
        axes.plot(range(len(columns)), line, color=str(0.85 * (1 - share)), linewidth=0.8 + 1.6 * share)
    axes.set_xticks(range(len(columns)), [*fields, hypermodel.objective.text])
    axes.set(yticks=[], ylim=(-0.12, 1.12))
    axes.tick_params(axis="x", pad=14)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    axes.set_title("a line per trial, darker and wider the better", fontsize=10)
    return figure


def _positions(values: Sequence) -> tuple[np.ndarray, list[str] | None]:
    """Numbers as they are; anything else by its place in the sorted list, with the names of the places."""
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return np.array(values, float), None
    names = sorted(set(map(str, values)))
    return np.array([names.index(str(v)) for v in values], float), names


def write_search_report(
    folder: Path,
    hypermodel: CertifiedHyperModel,
    trials: Sequence[Trial],
    beside: Sequence[Trial],
    spread: dict[str, np.ndarray],
) -> str:
    """Writes objective.png, parallel.png, table.md and index.html; returns the terminal's tables.

    Args:
        trials: of the search, the best first. beside: the baselines. spread: name -> scores over seeds.
    """
    done = [t for t in trials if t.score is not None]
    best = done[:1]
    named = [dataclasses.replace(t, name=f"best: {t.name}") for t in best]
    tables = {
        "Trials": trials_table([*trials, *beside], hypermodel.objective.text),
        "The best beside the baselines, on the validation images": accuracy_table(hypermodel, [*named, *beside]),
    }
    if spread:
        rows = [["recipe", "mean", "standard deviation", "least", "most", "seeds"]]
        for name, values in spread.items():
            deviation = f"{values.std(ddof=1):.4f}" if len(values) > 1 else "-"
            ends = [f"{values.mean():.4f}", deviation, f"{values.min():.4f}", f"{values.max():.4f}"]
            rows.append([name, *ends, str(len(values))])
        tables[f"{hypermodel.objective.text} over seeds, of weights, order and noise"] = rows
    tables |= {f"By {name}": table for name, table in ablations(hypermodel, trials).items()}
    figures = {}
    if done:
        figures = {
            "objective": objective_plot(hypermodel, trials, beside),
            "parallel": parallel_plot(hypermodel, trials),
        }
    recipe = hypermodel.recipe
    title = f"Search on {recipe.data}: {', '.join(one.field for one in hypermodel.space)}"
    caption = (
        f"Validation images only, the first {recipe.certify_images} of the split at most, sigma {recipe.sigma:g}, "
        f"n = {recipe.certify_n:,}, alpha {recipe.certify_alpha:g}; the same noise for every trial. The best of many "
        "trials is flattered by having been chosen: its seeds are the fairer figure, and the test images the last word."
    )
    sections = [Section(figures=figures), *(Section(name, rows=rows) for name, rows in tables.items())]
    scores = [{"trial": t.name, "status": t.status, hypermodel.objective.text: t.score} for t in [*trials, *beside]]
    seeds = {name: values.tolist() for name, values in spread.items()}
    data = {"recipe": json.loads(recipe.to_json()), "rows": scores, "over seeds": seeds}
    return Report(title, caption, sections, data).write(folder, titled=True)
