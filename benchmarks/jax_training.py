"""A method of a recipe, trained and voted on through Keras' JAX backend: what a GPU without TensorFlow runs.

    KERAS_BACKEND=jax python benchmarks/jax_frontier.py PLAN.json --data IMAGES.npz --out FOLDER

Network, objective, schedule and optimizer are the library's own; the loop, the order of the images, crops and mirror
images and the noise are drawn here, by JAX. An epoch is one compiled scan over its steps, short last batches left out.
Hyper-parameters that are plain numbers, sigma among them, are arguments of it: a grid of them compiles once.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np

from covkeras import models, moments
from covkeras.experiments.building import build_optimizer

# Far from the keys of training.
VOTING, COUNTING = 10**6, 2 * 10**6
PADDING = 4


def build(recipe, shape, classes: int):
    """The recipe's network, with weights drawn from its seed."""
    keras.utils.set_random_seed(recipe.seed)
    return getattr(models, recipe.model)(input_shape=shape, num_classes=classes)


class Fit:
    """Trainings of one method and network: they differ in seed, start, teacher and numbers."""

    def __init__(self, recipe, shape, classes: int, batches: int):
        self.recipe, self.shape, self.classes, self.batches = recipe, shape, classes, batches
        self.classifier = build(recipe, shape, classes)
        self.objective = recipe.objective().attached(self.classifier)
        self.optimizer = build_optimizer(recipe, batches)
        self.optimizer.build(self.classifier.trainable_variables)
        self.fresh = [v.value + 0 for v in self.optimizer.variables]
        known = getattr(self.objective, "known", None)
        # Frozen, its variables stand in another order than those of a classifier that is trained.
        there = {v.path: v for v in known.variables} if known is not None else {}
        both = (*self.classifier.trainable_variables, *self.classifier.non_trainable_variables)
        self.known = [there[v.path] for v in both] if there else []
        # The moments' rules take sigma for a number.
        numbers = {"lam", *self.traced(recipe.objective())}
        self.numbers = sorted(numbers if "network" not in vars(self.objective) else {"lam"})
        self._epoch = jax.jit(self._scanned, donate_argnums=0)

    @staticmethod
    def traced(objective) -> list[str]:
        return [k for k, v in objective.get_config().items() if isinstance(v, float)]

    def run(self, recipe, images, labels, teacher=()):
        """Returns the trained values (trainable, others), and the last epoch's training accuracy.

        images: uint8 (count, h, w, c), on the device. labels: int32. teacher: values of the teacher's weights.
        """
        own = build(recipe, self.shape, self.classes)
        trainable = [jnp.asarray(v.value) for v in own.trainable_variables]
        others = [jnp.asarray(v.value) for v in own.non_trainable_variables]
        state = (trainable, others, [v + 0 for v in self.fresh])
        objective, rng = recipe.objective(), np.random.default_rng(recipe.seed)
        numbers = {name: jnp.float32(getattr(objective, name)) for name in self.numbers}
        key, weights, accuracy = jax.random.key(recipe.seed), np.ones(len(labels)), 0.0
        for epoch in range(recipe.epochs):
            if copies := objective.copies_to_count(epoch):
                shares = self.shares(state, images, labels, numbers["sigma"], copies, epoch)
                weights = objective.image_weights(epoch, shares, weights)
            order = self._order(rng, weights, recipe.batch_size)
            lam = objective.lam if epoch >= objective.switch_epoch else 0.0
            at = {**numbers, "lam": jnp.float32(lam)}
            state, accuracy = self._epoch(state, images, labels, order, key, jnp.int32(epoch), at, list(teacher))
        return state[:2], float(accuracy)

    def _order(self, rng, weights, size: int):
        count = len(weights)
        chosen = np.arange(count)
        if (weights != weights[0]).any():
            total = np.cumsum(weights)
            places = (np.arange(count) + rng.random()) * (total[-1] / count)
            chosen = np.minimum(np.searchsorted(total, places, side="right"), np.flatnonzero(weights)[-1])
        return jnp.asarray(rng.permutation(chosen)[: self.batches * size].reshape(self.batches, size))

    def _scanned(self, state, images, labels, order, key, epoch, numbers, teacher):
        def step(state, at):
            chosen, number = at
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, epoch), number))
            x = augmented(images[chosen].astype("float32") / 255.0, self.recipe.augmentation, keys[0])
            noise = jax.random.normal(keys[1], (self.objective.copies, *x.shape))
            return self._descended(state, x, labels[chosen], noise, epoch, numbers, teacher)

        state, hits = jax.lax.scan(step, state, (order, jnp.arange(self.batches)))
        return state, hits.mean()

    def _descended(self, state, images, labels, noise, epoch, numbers, teacher):
        trainable, others, optimizing = state
        ours, theirs = self.classifier.trainable_variables, self.classifier.non_trainable_variables

        def loss(trainable):
            given = [*zip(ours, trainable, strict=True), *zip(theirs, others, strict=True)]
            given += zip(self.known, teacher, strict=True)
            with keras.StatelessScope(given) as scope:
                objective = copy.copy(self.objective)
                for name, value in numbers.items():
                    setattr(objective, name, value)
                context = moments.Context(training=True, epoch=epoch)
                terms = objective(images, labels, noise, context)
                total = terms.classification.mean()
                if terms.robustness is not None:
                    total = total + numbers["lam"] * terms.robustness.mean()
                moved = [scope.get_current_value(v) for v in theirs]
            moved = [old if new is None else new for old, new in zip(others, moved, strict=True)]
            return total, (moved, (terms.logits.argmax(-1) == labels).mean())

        gradients, (others, hit) = jax.grad(loss, has_aux=True)(trainable)
        trainable, optimizing = self.optimizer.stateless_apply(optimizing, gradients, trainable)
        return (trainable, others, optimizing), hit

    def shares(self, state, images, labels, sigma, copies: int, epoch: int):
        """The share of so many noisy copies of each training image that is given its label."""
        hits, key = np.zeros(len(labels)), jax.random.fold_in(jax.random.key(COUNTING), epoch)
        for first in range(0, len(labels), 5_000):
            part = images[first : first + 5_000].astype("float32") / 255.0
            key, one = jax.random.split(key)
            counted = votes(self.classifier, state[:2], part, sigma, one, 1, copies, 50)
            hits[first : first + 5_000] = np.asarray(counted)[np.arange(len(part)), labels[first : first + 5_000]]
        return hits / copies


def augmented(images, how: str, key):
    """Random crops after zero padding of 4, and mirror images; as the library's own, from another stream."""
    if how == "none":
        return images
    rows, mirrors = jax.random.split(key)
    count, height, width = images.shape[:3]
    shifts = jax.random.randint(rows, (2, count, 1), 0, 2 * PADDING + 1)
    row, column = shifts[0] + jnp.arange(height), shifts[1] + jnp.arange(width)
    column = jnp.where(jax.random.bernoulli(mirrors, shape=(count, 1)), column[:, ::-1], column)
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    return padded[jnp.arange(count)[:, None, None], row[:, :, None], column[:, None, :]]


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def votes(classifier, values, images, sigma, key, blocks: int, block: int, together: int):
    """How often each class wins among blocks x block noisy copies, int32 (images, classes); the images share their
    noise. Copies with a logit that is not finite vote for none. together: images evaluated at once, a divisor."""
    given = [*zip(classifier.trainable_variables, values[0], strict=True)]
    given += zip(classifier.non_trainable_variables, values[1], strict=True)
    parts = images.reshape(-1, together, *images.shape[1:])

    def counted(total, number):
        noise = sigma * jax.random.normal(jax.random.fold_in(key, number), (block, *images.shape[1:]))

        def of_part(part):
            noisy = (part[:, None] + noise).reshape(-1, *images.shape[1:])
            with keras.StatelessScope(given):
                logits = classifier(noisy, training=False)
            won = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype="int32")
            won = won * jnp.isfinite(logits).all(-1, keepdims=True)
            return won.reshape(together, block, -1).sum(1)

        return total + jax.lax.map(of_part, parts).reshape(len(images), -1), None

    empty = jnp.zeros((len(images), classifier.outputs[0].shape[-1]), "int32")
    return jax.lax.scan(counted, empty, jnp.arange(blocks))[0]
