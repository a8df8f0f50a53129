"""Denoising (Salman et al., NeurIPS 2020, Sec. 3.1): a denoiser that gives the clean image back, without any label."""

from covkeras.objectives.base import Objective, Step
from covkeras.objectives.terms import Terms
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops, denoisers = Later("keras.ops"), Later("covkeras.models.denoisers")


class Denoising(Objective):
    """Mean over the pixels of (D(x + eps) - x)^2, D the denoiser in front of the classifier (`models.joined`).

    The classifier is frozen, and takes no part in the loss; accuracy is the joined model's on the noisy images. Labels
    are not used: batches may come without them. A conditioned denoiser learns every level from sigma_low to sigma,
    spread evenly over each batch.
    """

    name = "denoising"
    copies = 1
    denoises = True
    labelled = False

    sigma_low: float = fields.number(
        0.0, "smallest noise level of a denoiser that is told it; 0 is for one of sigma alone", 0, closed="left"
    )

    def check(self) -> None:
        if self.sigma_low >= self.sigma:
            raise ValueError(f"sigma_low must be below sigma, {self.sigma:g}, got {self.sigma_low:g}.")

    def attach(self, classifier) -> None:
        """Raises ValueError: no denoiser in front; a classifier behind it that is not frozen; a denoiser that is not
        told the level where sigma_low asks for several, or the other way round."""
        super().attach(classifier)
        self.denoiser, self.behind = denoisers.parts_of(self.classifier)
        if self.behind.trainable_variables:
            raise ValueError(
                f"classifier {self.behind.name!r} behind the denoiser must be frozen: {self.name} trains the denoiser "
                "alone. Set classifier.trainable = False; other methods train both."
            )
        if denoisers.is_conditioned(self.denoiser) != (self.sigma_low > 0):
            raise ValueError(
                f"sigma_low must be above 0 for a denoiser that is told the noise level, and 0 for another, got "
                f"{self.sigma_low:g}."
            )

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels not used, noise (1, batch, h, w, c) standard normal -> Terms."""
        denoised = self.denoised(images, noise[0], context)
        logits = ops.cast(self.behind(ops.stop_gradient(denoised), training=False), "float32")
        return Terms(ops.mean(ops.square(denoised - images), (1, 2, 3)), logits=logits)

    def denoised(self, images, noise, context: Step):
        """D(x + sigma_i eps_i), (batch, h, w, c) float32."""
        if not self.sigma_low:
            return self.denoiser(images + self.sigma * noise, training=context.training)
        count = ops.shape(images)[0]
        # Not drawn: the images come in another order in every epoch.
        place = (ops.cast(ops.arange(count), "float32") + 0.5) / ops.cast(count, "float32")
        level = ops.reshape(self.sigma_low + (self.sigma - self.sigma_low) * place, (-1, 1, 1, 1))
        noisy = images + level * noise
        return self.denoiser(denoisers.with_level(noisy, level), training=context.training)
