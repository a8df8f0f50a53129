"""What every split of a data set is asked for, in memory or streamed from the disk."""

from covkeras.runtime.validation import check_count


class Split:
    """One split of a data set.

    Attributes:
        name, split: where it comes from. class_names: one per label.

    `len`, `image_shape`, `head(count)` (the first images, in memory), `limited(count)` (the same images in every epoch,
    the first; all for 0) and `batches`.
    """

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the full batches of an epoch; the remainder is left out, other images in every epoch."""
        if len(self) < check_count("batch_size", batch_size):
            raise ValueError(
                f"batch_size must be at most {len(self)}, the images of {self.name}'s {self.split} split, got "
                f"{batch_size}."
            )
        return len(self) // batch_size

    def with_channels(self, channels: int | None) -> "Split":
        """Returns the images in so many channels where they are grey and of one's own; others as they are."""
        return self

    def batches(
        self,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        step: int = 0,
        epochs: int | None = None,
        augmentation: str = "none",
        part: tuple[int, int] = (0, 1),
        weights=None,
    ):
        """Makes the stream of training batches from (epoch, step) on, up to epoch `epochs`, without end for None.

        Epoch e's order and augmentation are functions of (seed, e): a stream that starts in the middle continues
        exactly the one that was interrupted.

        Args:
            batch_size: images of a whole batch. augmentation: see `augmentation.AUGMENTATIONS`.
            part: (i, n), the i-th of n equal parts of each batch, such as a machine's; only that is read and decoded.
            weights: (images,), >= 0, how often an epoch draws each, in proportion; None for each once. In memory only.

        Returns:
            tf.data.Dataset of (images (batch_size / n, height, width, channels) float32 in [0, 1], labels int64).
        """
        raise NotImplementedError
