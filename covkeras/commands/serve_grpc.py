"""The local server's gRPC services, through TF-Serving's generated stubs."""

import functools

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from covkeras.commands.serve_models import STATUSES, Models, invalid, message_of


def answering(method):
    """Turns TensorFlow's errors, and damaged requests, into gRPC's."""

    @functools.wraps(method)
    def answered(self, request, context):
        try:
            return method(self, request)
        except tf.errors.OpError as error:
            code = next((c for kind, (_, c) in STATUSES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
            context.abort(code, message_of(error))
        except (TypeError, ValueError, KeyError, IndexError, MemoryError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"damaged tensor: {error!r}")

    return answered


def asked(spec) -> tuple[int | None, str | None]:
    """The version and the label of a ModelSpec: one of them, or neither."""
    version = spec.version.value if spec.HasField("version") else None
    return version, spec.version_label or None


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The prediction service: Predict and GetModelMetadata."""

    def __init__(self, models: Models):
        self.models = models

    @answering
    def Predict(self, request):
        spec = request.model_spec
        version, label = asked(spec)
        inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
        only = tuple(request.output_filter)
        version, outputs = self.models.run(spec.name, version, spec.signature_name, inputs, label, only)
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name, answer.model_spec.version.value = spec.name, version
        answer.model_spec.signature_name = spec.signature_name or "serving_default"
        for name, value in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return answer

    @answering
    def GetModelMetadata(self, request):
        spec = request.model_spec
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        version, definitions = self.models.signature_defs(spec.name, *asked(spec))
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name, answer.model_spec.version.value = spec.name, version
        answer.metadata["signature_def"].Pack(signature_map(definitions))
        return answer


def signature_map(definitions) -> get_model_metadata_pb2.SignatureDefMap:
    """The SignatureDefs as both services give them."""
    made = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in definitions.items():
        made.signature_def[name].CopyFrom(definition)
    return made


class Status(model_service_pb2_grpc.ModelServiceServicer):
    """The model service's GetModelStatus."""

    def __init__(self, models: Models):
        self.models = models

    @answering
    def GetModelStatus(self, request):
        name, (version, label) = request.model_spec.name, asked(request.model_spec)
        if label:
            self.models.find(name, None, label)
        answer = get_model_status_pb2.GetModelStatusResponse()
        for one in self.models.versions(name, version):
            answer.model_version_status.add(version=one, state=30)  # AVAILABLE
        return answer
