"""Warm-up requests: what TF-Serving runs when it loads a version, so that the first client doesn't wait for it."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

FILE = "tf_serving_warmup_requests"


def write_warmup(extra: Path, model: str, image_shape: tuple[int, ...]) -> None:
    """Writes one request for each signature that takes images alone.

    Args:
        extra: the version's assets.extra. model: its name. image_shape: (height, width, channels).
    """
    black = np.zeros((1, *image_shape), np.float32)
    with tf.io.TFRecordWriter(str(extra / FILE)) as file:
        for signature in ("serving_default", "predict", "logits"):
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = model, signature
            request.inputs["images"].CopyFrom(tf.make_tensor_proto(black))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            file.write(log.SerializeToString())
