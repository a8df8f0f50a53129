"""The paper's step with one covariance per image, as its published code carries it: for the benchmark alone."""

import math

import keras
import tensorflow as tf

from covkeras.moments.network import walk
from covkeras.objectives.terms import Terms, cross_entropy


class PerImageCovariance:
    """CovarianceRadius with cov (batch, channels, channels); the layers that `covkeras.models.lenet` is made of."""

    name, lam, switch_epoch, copies = "per_image_covariance", 4.0, 0, 0

    def __init__(self, sigma: float, r_max: float):
        self.sigma, self.r_max = sigma, r_max

    def attach(self, classifier):
        self.classifier = classifier

    def __call__(self, images, labels, noise, context):
        cov = self.sigma**2 * tf.eye(images.shape[-1], batch_shape=[images.shape[0]])
        mean, cov = walk(self.classifier, (images, cov), self._visit)
        target = tf.one_hot(labels, mean.shape[-1])
        other = tf.one_hot(tf.argmax(mean - 1e30 * target, -1), mean.shape[-1])
        direction = target - other
        sd = tf.sqrt(tf.einsum("bi,bij,bj->b", direction, cov, direction))
        radius = self.sigma * tf.reduce_sum(mean * direction, -1) / sd
        hinge = tf.where(radius > 0, tf.maximum(8.0 - radius, 0.0), 0.0)
        return Terms(cross_entropy(labels, mean), hinge, mean, radius)

    def _visit(self, layer, pair, position, options):
        mean, cov = pair
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            convolution = isinstance(layer, keras.layers.Conv2D)
            kernel = tf.reshape(layer.kernel, [-1, cov.shape[-1], layer.kernel.shape[-1]])
            weighted = tf.einsum("bij,kjo->bkio", cov, kernel)
            cov = (1.0 + self.r_max * convolution) * tf.einsum("kip,bkio->bpo", kernel, weighted)
            mean = tf.nn.conv2d(mean, layer.kernel, 1, "SAME") if convolution else tf.matmul(mean, layer.kernel)
            mean = tf.nn.bias_add(mean, layer.bias)
            return (self._relu(mean, cov), cov) if layer.activation is keras.activations.relu else (mean, cov)
        if isinstance(layer, keras.layers.AveragePooling2D):
            return layer(mean), cov / math.prod(layer.pool_size)
        if isinstance(layer, keras.layers.Rescaling):
            return layer(mean), layer.scale**2 * cov
        return layer(mean), cov

    def _relu(self, mean, cov):
        sd = tf.sqrt(tf.linalg.diag_part(cov))
        sd = tf.reshape(sd, [-1, *[1] * (len(mean.shape) - 2), sd.shape[-1]]) + tf.zeros_like(mean)
        return leaky_mean_per_unit(mean, sd)


def leaky_mean_per_unit(mean, sd):
    """m Phi(z) + s phi(z) with a standard deviation for every unit."""
    z = mean / sd
    return mean * 0.5 * (1.0 + tf.math.erf(z * math.sqrt(0.5))) + sd * tf.exp(-0.5 * z * z) * math.sqrt(0.5 / math.pi)
