"""Stability (Salman et al., NeurIPS 2020, Sec. 3.1): a denoiser that keeps a frozen classifier's own decisions."""

import os

from covkeras.objectives.base import Step
from covkeras.objectives.denoising import Denoising
from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops, loading = Later("keras.ops"), Later("covkeras.runtime.loading")


class Stability(Denoising):
    """CE(F(D(x + eps)), argmax F(x)): D the denoiser in front of the frozen classifier F (`models.joined`).

    With surrogates it is the mean over them, each with its own decisions, and F itself is asked for answers alone,
    never for a gradient: the authors' black-box case. Labels are not used: batches may come without them.
    """

    name = "stability"

    surrogates: str = fields.files("", "classifiers to train against instead, .keras files separated by commas")

    def check(self) -> None:
        super().check()
        for path in self._paths():
            if not os.path.isfile(path):
                raise ValueError(f"surrogates must be .keras files separated by commas, but {path} is no file.")

    def _paths(self) -> list[str]:
        return [os.path.expanduser(path.strip()) for path in self.surrogates.split(",") if path.strip()]

    def attach(self, classifier) -> None:
        super().attach(classifier)
        self.judges = [_loaded(path, self.behind) for path in self._paths()] or [self.behind]

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels not used, noise (1, batch, h, w, c) standard normal -> Terms."""
        denoised = self.denoised(images, noise[0], context)
        losses, logits = [], None
        for judge in self.judges:
            decided = ops.argmax(judge(images, training=False), -1)
            logits = ops.cast(judge(denoised, training=False), "float32")
            losses.append(cross_entropy(decided, logits))
        if self.surrogates:
            logits = ops.cast(self.behind(ops.stop_gradient(denoised), training=False), "float32")
        return Terms(sum(losses) / len(losses), logits=logits)


def _loaded(path: str, behind):
    """A surrogate, frozen. Raises ValueError: it takes other images. It may have other classes: it is only compared
    with itself."""
    surrogate = loading.load_keras(path, "surrogate")
    if len(surrogate.inputs) != 1 or surrogate.inputs[0].shape[1:] != behind.inputs[0].shape[1:]:
        raise ValueError(
            f"surrogates must take the classifier's images, {tuple(behind.inputs[0].shape[1:])}, {path} takes "
            f"{[tuple(i.shape[1:]) for i in surrogate.inputs]}."
        )
    surrogate.trainable = False
    return surrogate
