"""The diagnostics as figures: variances by depth, clouds with ellipses, boxes beside covariances, samples by size."""

from collections.abc import Sequence

import numpy as np
import scipy.stats

from covkeras.diagnostics.growth import Growth
from covkeras.diagnostics.layerwise import LayerMoments, gaussianity_floor
from covkeras.diagnostics.toy import Plane
from covkeras.reports.pages import STYLES, new_figure

# A plane's ellipse that holds 95 % of a normal distribution: radius sqrt(-2 log .05).
_ELLIPSE = 2.448


def variance_table(rows: Sequence[LayerMoments], r_max: float) -> list[list[str]]:
    """Returns a header and one row per layer (the paper's Table 2)."""
    table = [
        [
            *["layer", "units", "sampled variance", "95 % interval ±", "propagated", "ratio", "ratio, bivariate"],
            *["neighbours' correlation", "r_max", "distance to normal"],
        ]
    ]
    for row in rows:
        low, high = row.interval
        table.append(
            [
                row.name,
                "x".join(map(str, row.shape)),
                f"{row.sampled.mean():.4g}",
                f"{(high - low) / 2:.2g}",
                f"{row.propagated.mean():.4g}",
                f"{row.ratio:.3f}",
                f"{row.bivariate_ratio:.3f}",
                "-" if np.isnan(row.correlation) else f"{row.correlation:.3f}",
                f"{r_max:g}",
                f"{row.gaussianity:.3f}",
            ]
        )
    return table


def ratio_plot(rows: Sequence[LayerMoments]):
    """Returns propagated over sampled variance by depth: the mean over channels, and the middle half of them."""
    figure, axes = new_figure(width=max(6.4, 0.42 * len(rows)))
    depth = np.arange(1, len(rows) + 1)
    by_channel = [r.propagated / np.maximum(r.sampled, 1e-30) for r in rows]
    low, high = np.array([np.quantile(c, [0.25, 0.75]) for c in by_channel]).T
    colour, _ = STYLES[0]
    axes.fill_between(depth, low, high, color=colour, alpha=0.2, linewidth=0, label="channels, middle half")
    axes.plot(depth, [r.ratio for r in rows], color=colour, marker="o", linewidth=1.8, label="mean over channels")
    other, _ = STYLES[1]
    bivariate = [r.bivariate_ratio for r in rows]
    axes.plot(depth, bivariate, color=other, marker="s", linestyle="--", label="with the covariance of two ReLUs")
    axes.axhline(1.0, color="#888888", linewidth=1)
    axes.annotate("equal", (depth[-1], 1.0), ha="right", va="bottom", color="#666666", fontsize=8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(depth, [r.name for r in rows], rotation=60, ha="right", fontsize=8)
    axes.set(ylabel="propagated over sampled variance", xlabel="layer, from the image to the logits")
    axes.legend(frameon=False, fontsize=8)
    return figure


def ellipse(mean, cov, scale: float = _ELLIPSE) -> np.ndarray:
    """Returns (200, 2) points of mean + scale cov^(1/2) u, u on the unit circle."""
    angle = np.linspace(0, 2 * np.pi, 200)
    values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
    root = vectors * np.sqrt(np.maximum(values, 0))
    return np.asarray(mean) + scale * np.stack([np.cos(angle), np.sin(angle)], 1) @ root.T


def cloud_plot(rows: Sequence[LayerMoments]):
    """Returns the first two channels' samples with their density, and ellipses (95 %), a panel per layer: as sampled,
    by the paper's rules, with the covariance of two ReLUs (the paper's Figure 6)."""
    figure, panels = new_figure(len(rows), columns=min(2, len(rows)))
    floor = gaussianity_floor(len(rows[0].cloud))
    for row, axes in zip(rows, np.atleast_1d(panels), strict=True):
        pair = row.cloud[:, :2]
        density = scipy.stats.gaussian_kde(pair.T)(pair.T) if np.linalg.matrix_rank(np.cov(pair.T)) == 2 else None
        axes.scatter(*pair.T, s=5, c=density, cmap="Greys", vmin=0, linewidths=0)
        sampled = ellipse(pair.mean(0), np.cov(pair.T))
        axes.plot(*sampled.T, color=STYLES[0][0], linestyle="-", linewidth=1.8, label="sampled, 95 %")
        propagated = ellipse(row.cloud_mean[:2], row.cloud_cov[:2, :2])
        axes.plot(*propagated.T, color=STYLES[1][0], linestyle="--", linewidth=1.8, label="propagated, 95 %")
        both = ellipse(row.cloud_bivariate.mean[:2], row.cloud_bivariate.cov[:2, :2])
        axes.plot(*both.T, color=STYLES[2][0], linestyle="-.", linewidth=1.8, label="covariance of two ReLUs, 95 %")
        axes.set(xlabel="channel 1 (units of the layer)", ylabel="channel 2")
        axes.set_title(
            f"{row.name}\ndistance to normal {row.gaussianity:.3f}, of normal samples {floor:.3f}", fontsize=9
        )
    np.atleast_1d(panels)[0].legend(frameon=False, fontsize=8)
    return figure


def planes_plot(rows: Sequence[Plane]):
    """Returns samples, interval boxes and tracked ellipses of input, hidden and output layer (Figure 1a)."""
    figure, panels = new_figure(len(rows))
    for row, axes in zip(rows, panels, strict=True):
        axes.scatter(*row.samples.T, s=3, color="#888888", linewidths=0, label="samples")
        (x, y), (width, height) = row.low, row.high - row.low
        box = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]])
        axes.plot(*box.T, color=STYLES[2][0], linestyle="-.", linewidth=1.8, label="interval bounds, 3 sigma")
        tracked = ellipse(row.mean, row.cov, 3.0)
        axes.plot(*tracked.T, color=STYLES[1][0], linestyle="--", linewidth=1.8, label="tracked covariance, 3 sd")
        axes.set(xlabel="unit 1", ylabel="unit 2")
        axes.set_title(row.name, fontsize=10)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8, markerscale=5)
    return figure


def growth_plot(measured: Growth):
    """Returns the samples needed against the image's size (Figure 1b)."""
    figure, axes = new_figure()
    for (colour, style), values, label, marker in (
        (STYLES[1], measured.pixels, "of all pixels (closed form)", "s"),
        (STYLES[0], measured.logits, "of the ten logits (measured)", "o"),
    ):
        axes.plot(measured.sizes, values, color=colour, linestyle=style, marker=marker, linewidth=1.8, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(measured.sizes, [f"{s} x {s}" for s in measured.sizes])
    axes.set(xlabel="image (pixels)", ylabel=f"samples until the covariance is known to {measured.error:.0%}")
    axes.legend(frameon=False, fontsize=9)
    return figure
