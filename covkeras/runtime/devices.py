"""Which devices a job runs on."""

import functools
import os

import tensorflow as tf


def best_precision(on: str = "auto") -> tuple[str, str]:
    """Returns the dtype policy that is fastest here, and why: mixed_bfloat16 on GPUs and processors with units for it,
    mixed_float16 on GPUs of compute capability 7, else float32. on: the devices as `strategy` takes them."""
    gpus = [] if on == "cpu" else tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability") or (0, 0)
        chosen = "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"
        return chosen, f"a GPU of compute capability {'.'.join(map(str, capability))}"
    if processor_flags() & {"amx_bf16", "avx512_bf16"} and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0":
        return "mixed_bfloat16", "this processor has bfloat16 units"
    return "float32", "this processor has no bfloat16 units"


def is_watched() -> bool:
    """Whether TensorFlow is being debugged: `tf.debugging.enable_check_numerics` and dumps put operations into every
    graph that XLA can't compile, and that no export should hold."""
    with tf.Graph().as_default() as graph:
        tf.exp(tf.constant(1.0))
    return any("Debug" in operation.type or "CheckNumerics" in operation.type for operation in graph.get_operations())


def processor_flags() -> set[str]:
    """Returns what the processor can do, as Linux tells it; nothing on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = (line for line in file if line.startswith(("flags", "Features")))
            return set(next(lines, "").partition(":")[2].split())
    except OSError:
        return set()


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
