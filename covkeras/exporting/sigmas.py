"""One export for several noise levels: each request chooses its sigma, or asks for the best of them."""

from collections.abc import Sequence

import tensorflow as tf

from covkeras.certification.certificates import ABSTAIN
from covkeras.exporting.graphs import ServedGraphs, require


class SeveralSigmas:
    """The served graphs of one classifier, or of several on the same images, at different sigmas."""

    def __init__(self, graphs: Sequence[ServedGraphs]):
        self.graphs = list(graphs)
        self.sigmas = [g.smoothed.sigma for g in self.graphs]

    def certify(self, images, sigma, n0, n, alpha, seed):
        """CERTIFY of each image at its own sigma: what the `certify` of that sigma's graphs gives.

        Args:
            images, n0, n, alpha, seed: as `ServedGraphs.certify`. sigma: float64 (batch,), of the exported ones.

        Returns:
            label int64 (-1 = abstain), radius float64, p_lower float64, samples int64, (batch,).
        """
        off = tf.abs(sigma[:, None] - tf.constant(self.sigmas, tf.float64))
        # A request may carry it in float32.
        near = off <= 1e-6 * tf.constant(self.sigmas, tf.float64)
        listed = ", ".join(f"{s:g}" for s in self.sigmas)
        with tf.control_dependencies([require(tf.reduce_any(near, 1), f"sigma must be one of {listed}, as exported")]):
            chosen = tf.argmin(off, 1)
        places, results = [], []
        for k, graphs in enumerate(self.graphs):
            place = tf.reshape(tf.where(chosen == k), [-1])
            places.append(tf.cast(place, tf.int32))
            given = (tf.gather(value, place) for value in (images, n0, n, alpha, seed))
            results.append(graphs.certify(*given))
        return tuple(tf.dynamic_stitch(places, list(each)) for each in zip(*results, strict=True))

    def best(self, images, n0, n, alpha, seed):
        """The largest of an image's radii, each sigma's certified at alpha over their number: together they hold with
        probability 1 - alpha (a union bound), and so does the one that is chosen.

        It speaks of the smoothed classifier at the sigma that is returned, on the whole ball. Another image of that
        ball may get its largest radius at another sigma, and there another class.

        Returns:
            label, radius, p_lower, as `certify`, of the best; samples, of all together; sigma float64, (batch,).
        """
        share = alpha / len(self.graphs)
        results = [graphs.certify(images, n0, n, share, seed) for graphs in self.graphs]
        label, radius, p_lower, samples = (tf.stack(each, 1) for each in zip(*results, strict=True))
        # Where all abstain the radius is 0 everywhere: the first.
        first = tf.argmax(tf.where(label == ABSTAIN, tf.zeros_like(radius), radius), 1)
        label, radius, p_lower = (tf.gather(each, first, batch_dims=1) for each in (label, radius, p_lower))
        return label, radius, p_lower, tf.reduce_sum(samples, 1), tf.gather(tf.constant(self.sigmas, tf.float64), first)
