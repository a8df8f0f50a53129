"""The sections of the diagnostics' report."""

from collections.abc import Sequence

import numpy as np

from covkeras.diagnostics import pictures
from covkeras.diagnostics.growth import Growth
from covkeras.diagnostics.layerwise import LayerMoments
from covkeras.diagnostics.toy import Plane
from covkeras.reports.report import Section


def verdict(rows: Sequence[LayerMoments]) -> str:
    """Says in words how far the propagated variance is off, and in which direction, where."""
    ratios = np.array([r.ratio for r in rows])
    least, most = int(ratios.argmin()), int(ratios.argmax())
    inside = sum(r.interval[0] <= r.propagated.mean() <= r.interval[1] for r in rows)
    above = ratios > 1
    turns = np.flatnonzero(np.diff(above.astype(int))) + 1
    parts = [f"it starts at {ratios[0]:.2f} times the sampled variance ({rows[0].name})"]
    parts += [f"{'rises above' if above[t] else 'falls below'} it at {rows[t].name} ({ratios[t]:.2f})" for t in turns]
    parts.append(f"ends at {ratios[-1]:.2f} ({rows[-1].name})")
    correlated = [r.correlation for r in rows if not np.isnan(r.correlation)]
    found = f" Neighbouring pixels correlate by {min(correlated):.2f} to {max(correlated):.2f}." if correlated else ""
    bound = "a" if above.all() else "no"
    return (
        f"The propagated variance is {bound} bound here: {', '.join(parts)}. Too small at {int((~above).sum())} of "
        f"{len(rows)} layers; the ratio runs from {ratios[least]:.3g} ({rows[least].name}) to {ratios[most]:.3g} "
        f"({rows[most].name}). It lies within the samples' interval at {inside}.{found}"
    )


def layer_sections(rows: Sequence[LayerMoments], shown: Sequence[str], r_max: float) -> list[Section]:
    """Table 2, its curve, and Figure 6 at the chosen layers."""
    clouds = [r for r in rows if r.name in shown and r.cloud.shape[1] > 1]
    sections = [
        Section(
            "Variance of the pre-activations",
            "Sampled, the mean over channels, pixels and images, with its 95 % interval over the samples' draw; "
            "propagated by the paper's rules; the ratio where the covariance of two ReLUs of jointly Gaussian units "
            "stands in the place of the paper's unchanged one (at the first image); the correlation between horizontal "
            f"and vertical neighbours as found, beside the r_max assumed. {verdict(rows)}",
            rows=pictures.variance_table(rows, r_max),
        ),
        Section(
            "How far the propagated variance is off, by depth",
            "1 is exact, below 1 too small.",
            {"ratio": pictures.ratio_plot(rows)},
        ),
    ]
    if clouds:
        words = (
            "The first two channels at the central pixel of the first image: samples (darker where dense), the ellipse "
            "that would hold 95 % of a normal distribution of the sampled covariance, that of "
            "the propagated one, and of the one propagated with the covariance of two ReLUs."
        )
        sections.append(Section("Samples and ellipses", words, {"clouds": pictures.cloud_plot(clouds)}))
    return sections


def general_sections(planes: Sequence[Plane], measured: Growth) -> list[Section]:
    """Figures 1a and 1b: not of the classifier, of the method."""
    last = planes[-1]
    box, spread = last.high - last.low, 6 * last.samples.std(0)
    flat = max(measured.logits) / min(measured.logits)
    return [
        Section(
            "Boxes and covariances",
            "A two-layer network on points of the plane. Interval bounds hold every value of inputs within 3 sigma of "
            "the point in each coordinate; the tracked covariance follows the noise. At the output the box is "
            f"{box[0] / spread[0]:.1f} and {box[1] / spread[1]:.1f} times as wide as 6 standard deviations.",
            {"planes": pictures.planes_plot(planes)},
        ),
        Section(
            "Samples needed as images grow",
            "Until the covariance matrix is known to within the stated error (Frobenius norm, relative). That of all "
            "pixels needs more with every pixel; that of the logits, which is all that certification asks for, does "
            f"not: it changes by a factor of {flat:.1f} over these sizes (narrow PreActResNet-18s, random weights). "
            "What grows is the price of a sample, with the number of pixels.",
            {"growth": pictures.growth_plot(measured)},
        ),
    ]
