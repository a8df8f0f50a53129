"""What a denoiser does to images, to look at: before and after."""

import numpy as np

from covkeras.models.denoisers import parts_of
from covkeras.moments.graph import nodes_of
from covkeras.reports.pages import new_figure
from covkeras.reports.report import Section


def section(model, images: np.ndarray, sigma: float, seed: int = 0) -> Section:
    """Returns a report's section with a few images as they are, with noise, and as the classifier is given them.

    Args:
        model: of `models.joined`. images: (few, height, width, channels) in [0, 1]. sigma: of the noise. seed: of it.
    """
    noise = np.random.default_rng(seed).standard_normal(images.shape).astype(np.float32)
    noisy = images + np.float32(sigma) * noise
    after = denoised_by(model, noisy)
    named = (("the image", images), (f"with noise, sigma {sigma:g}", noisy), ("denoised", after))
    before_error, error = (float(np.sqrt(np.square(x - images).mean())) for x in (noisy, after))
    return Section(
        "What the classifier is given",
        figures={"denoised": _figure(named)},
        note=f"The first {len(images)} test images. Root mean square distance to the image: with noise "
        f"{before_error:.3f}, denoised {error:.3f}.",
    )


def denoised_by(model, noisy: np.ndarray) -> np.ndarray:
    """Returns what the classifier of a joined model is given, float32 (batch, height, width, channels)."""
    import keras

    denoiser, _ = parts_of(model)
    # The model up to its denoiser: a conditioned one is told the level on the way.
    call = next(node for node in nodes_of(model) if node.operation is denoiser)
    return np.asarray(keras.Model(model.inputs[0], call.outputs[0])(noisy, training=False), np.float32)


def _figure(rows):
    """One row of pictures for each (title, images), side by side."""
    count = len(rows[0][1])
    figure, axes = new_figure(len(rows) * count, columns=count)
    figure.set_size_inches(1.5 * count, 1.7 * len(rows))
    for i, (title, images) in enumerate(rows):
        for j, image in enumerate(images):
            at = axes[i * count + j]
            shown = np.clip(image, 0.0, 1.0)
            if shown.shape[-1] != 3:
                shown = shown[..., 0]
            at.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
            at.set_axis_off()
            if j == 0:
                at.set_title(title, fontsize=9, loc="left")
    return figure
