"""
Train, certify, report, export: ten minutes
===========================================

A classifier of handwritten digits, from its training to a served answer with a guarantee. The digits are part of
scikit-learn: 8 x 8 pixels, no network needed. Every figure below was computed when this page was built.
"""

import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import tensorflow as tf

import covkeras as ck

keras.utils.set_random_seed(0)
folder = Path(tempfile.mkdtemp())

# %%
# Data and a model
# ----------------
# Images are numbers in [0, 1]; sigma and every radius are in the same unit. The classifier is an ordinary Keras model
# that ends in logits, with its normalisation inside. It may be one of your own.

digits, test = ck.datasets.load("digits", "train"), ck.datasets.load("digits", "test")
classifier = ck.models.lenet(digits.image_shape, num_classes=10)
classifier.count_params(), len(digits), len(test)

# %%
# Train
# -----
# ``CertifiedTrainer`` is a Keras model: ``fit``, callbacks and optimizers are those you know. The objective says what
# a step minimises; this one asks that two noisy copies of an image are classified alike.

sigma = 0.25
trainer = ck.CertifiedTrainer(classifier, ck.objectives.Consistency(sigma=sigma, lam=10.0, antithetic=True))
trainer.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
history = trainer.fit(
    digits.batches(64), epochs=20, steps_per_epoch=digits.steps_per_epoch(64), verbose=0, shuffle=False
)
print(f"accuracy on noisy training images: {history.history['accuracy'][-1]:.3f}")

# %%
# Certify
# -------
# The smoothed classifier answers with the class that the classifier gives most often under noise. ``certify`` samples
# and bounds that class's probability from below: within ``radius`` of the image, in Euclidean distance, the answer
# can't change. Each certificate is wrong with probability at most alpha.

smoothed = ck.SmoothedClassifier(classifier, sigma=sigma)
images, labels = test.floats(slice(60)), test.labels[:60]
certificates = smoothed.certify(images, n0=100, n=2_000, alpha=0.001, seed=0)
for label, truth, radius in list(zip(certificates.label, labels, certificates.radius, strict=True))[:5]:
    print(f"a {truth}, certified as {label} up to radius {radius:.3f}")

# %%
# Where one radius is all that matters, a sequential test needs far fewer samples.

decided = smoothed.certify_at(images, radius=0.25, alpha=0.001, seed=0)
print(f"certified at 0.25: {decided.certified.mean():.0%}, with {decided.samples.mean():.0f} samples on average")

# %%
# Report
# ------
# The average certified radius counts 0 for a wrong answer. Read it beside certified accuracy at several radii.

print(f"average certified radius: {ck.average_certified_radius(certificates, labels):.3f}")
result = ck.report.Result("Consistency", labels, certificates)
print(ck.report.plain(ck.report.accuracy_table([result])))
ck.report.write_report(folder / "report", [result])
plt.imshow(plt.imread(folder / "report" / "curve.png"))
plt.axis("off")
plt.tight_layout()

# %%
# Estimate without samples
# ------------------------
# The adjoint estimate propagates the noise's covariance from the margin's end: one forward and one backward pass. It
# ranks images nearly as the samples do, and is never a certificate.

network = ck.MomentNetwork(classifier, sigma=sigma)
margin = ck.adjoint_margin(network, images, ck.calibrate_gates(network, digits.floats(slice(64))))
fidelity = ck.diagnostics.fidelity(network, images, certificates, digits.floats(slice(64)))
for estimate in fidelity:
    print(f"{estimate.name}: rank correlation {estimate.rank_correlation:.3f}, ratio {estimate.median_ratio:.2f}")

# %%
# Export
# ------
# A SavedModel with sampling, bound and radius in its graph: TF-Serving runs it without Python and without covkeras.

ck.export(smoothed, folder / "digits" / "1", digits.class_names)
served = tf.saved_model.load(str(folder / "digits" / "1"))
answer = served.signatures["serving_default"](images=images[:2])
for name, value in answer.items():
    print(name, value.numpy())
