"""Which devices a job runs on."""

import functools

import tensorflow as tf


def strategy(devices: str = "auto") -> tf.distribute.Strategy:
    """Returns the strategy for "auto" (all GPUs, or the CPU), "cpu", or a number of GPUs (or logical CPUs).

    Raises:
        ValueError: not one of these, or fewer devices than asked for.
    """
    gpus = [d.name.removeprefix("/device:") for d in tf.config.list_logical_devices("GPU")]
    cpus = [d.name.removeprefix("/device:") for d in tf.config.list_logical_devices("CPU")]
    if devices == "cpu" or (devices == "auto" and len(gpus) < 2):
        return tf.distribute.OneDeviceStrategy(gpus[0] if gpus and devices == "auto" else cpus[0])
    if devices == "auto":
        return _mirrored(tuple(gpus))
    there = gpus or cpus
    if not devices.isdigit() or not 1 <= int(devices) <= len(there):
        raise ValueError(f"devices must be auto, cpu, or a number from 1 to {len(there)}, got {devices!r}.")
    return _mirrored(tuple(there[: int(devices)]))


@functools.lru_cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    # One for the life of the process: a second one would number its collective operations from the start again, and
    # TensorFlow would take them for those of the first, of other shapes.
    return tf.distribute.MirroredStrategy(devices)
