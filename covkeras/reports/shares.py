"""How sure the smoothed classifier is of the right class, image by image: what an average radius hides."""

from collections.abc import Sequence

import numpy as np

from covkeras.experiments.result import Result
from covkeras.reports.pages import legend, new_figure, style_of
from covkeras.reports.report import Section

BINS = np.linspace(0.0, 1.0, 41)
NOTE = (
    "How many images have which lower bound on p_A, the probability of the right class under noise. "
    "The radius grows without end as p_A nears 1, so that few sure images can buy an ACR that many unsure ones pay."
)


def section(methods: dict[str, Sequence[Result]]) -> Section:
    """Returns a report's section with the histogram; an empty one where a log tells no p_A."""
    if not all(map(known, methods.values())):
        return Section()
    return Section("How sure", figures={"p_A": shares_plot(methods)}, note=NOTE)


def known(results: Sequence[Result]) -> bool:
    """Whether the certificates tell their bound on p_A: other projects' logs have the radius alone."""
    return all(np.isfinite(r.certificates.p_lower).all() for r in results)


def shares_of(results: Sequence[Result]) -> list[float]:
    """Returns of one method's results the share of images in each fortieth of p_A's range, by its lower bound; those
    of another class, or abstained on, are in none."""
    right = [r.certificates.p_lower[r.certificates.label == r.labels] for r in results]
    counts = np.histogram(np.concatenate(right), BINS)[0]
    return (counts / sum(len(r.labels) for r in results)).tolist()


def shares_plot(methods: dict[str, Sequence[Result]]):
    """Returns the figure: a histogram of p_A's lower bound per method, its seeds together."""
    figure, axes = new_figure()
    for i, (name, results) in enumerate(methods.items()):
        colour, style = style_of(i)
        shares = shares_of(results)
        left = f"{name}, {1.0 - sum(shares):.0%} wrong or abstained"
        axes.stairs(shares, BINS, color=colour, linestyle=style, linewidth=1.8, label=left)
    axes.set(xlabel="lower bound on p_A of the right class", ylabel="share of images")
    # Without the runner-up's bound nothing is certified below a half.
    below = any(sum(shares_of(results)[: len(BINS) // 2]) for results in methods.values())
    axes.set_xlim(0.0 if below else 0.5, 1.0)
    legend(figure, axes, 8)
    return figure
