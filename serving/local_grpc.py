"""The local server's gRPC services, through TF-Serving's generated stubs."""

import grpc
import tensorflow as tf
from local_models import STATUSES, Models, message_of
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The gRPC service's Predict."""

    def __init__(self, models: Models):
        self.models = models

    def Predict(self, request, context):
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        try:
            inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
            version, outputs = self.models.run(spec.name, version, spec.signature_name, inputs)
        except tf.errors.OpError as error:
            code = next((c for kind, (_, c) in STATUSES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
            context.abort(code, message_of(error))
        except (TypeError, ValueError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"damaged tensor: {error}")
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name, answer.model_spec.version.value = spec.name, version
        answer.model_spec.signature_name = spec.signature_name or "serving_default"
        for name, value in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return answer


class Status(model_service_pb2_grpc.ModelServiceServicer):
    """The gRPC service's GetModelStatus."""

    def __init__(self, models: Models):
        self.models = models

    def GetModelStatus(self, request, context):
        versions = self.models.loaded.get(request.model_spec.name)
        if not versions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {request.model_spec.name}")
        answer = get_model_status_pb2.GetModelStatusResponse()
        for version in sorted(versions, reverse=True):
            answer.model_version_status.add(version=version, state=30)  # AVAILABLE
        return answer
