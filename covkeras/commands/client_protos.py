"""TF-Serving's Predict messages from their published field numbers: the generated stubs would import TensorFlow, 4 s.

tests/test_serving.py holds them against the stubs.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

METHOD = "/tensorflow.serving.PredictionService/Predict"
_KIND = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "int32": _KIND.TYPE_INT32,
    "int64": _KIND.TYPE_INT64,
    "float": _KIND.TYPE_FLOAT,
    "double": _KIND.TYPE_DOUBLE,
    "bool": _KIND.TYPE_BOOL,
    "string": _KIND.TYPE_STRING,
    "bytes": _KIND.TYPE_BYTES,
}
# message -> field -> (number, type), a type in brackets being a list of it.
_MESSAGES = {
    "Dim": {"size": (1, "int64"), "name": (2, "string")},
    "TensorShape": {"dim": (2, "[Dim]"), "unknown_rank": (3, "bool")},
    "Tensor": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "TensorShape"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "[float]"),
        "double_val": (6, "[double]"),
        "int_val": (7, "[int32]"),
        "string_val": (8, "[bytes]"),
        "int64_val": (10, "[int64]"),
        "bool_val": (11, "[bool]"),
    },
    "ModelSpec": {
        "name": (1, "string"),
        "version": (2, "google.protobuf.Int64Value"),
        "signature_name": (3, "string"),
    },
    # A map is a list of entries on the wire.
    "Entry": {"key": (1, "string"), "value": (2, "Tensor")},
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "[Entry]")},
    "PredictResponse": {"outputs": (1, "[Entry]"), "model_spec": (2, "ModelSpec")},
}


def _built() -> dict:
    pool, package = descriptor_pool.DescriptorPool(), "covkeras.client"
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="client.proto", package=package, syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            single = kind.strip("[]")
            made = message.field.add(name=field, number=number)
            made.label = _KIND.LABEL_REPEATED if kind != single else _KIND.LABEL_OPTIONAL
            if single in _SCALARS:
                made.type = _SCALARS[single]
            else:
                made.type = _KIND.TYPE_MESSAGE
                made.type_name = f".{single}" if "." in single else f".{package}.{single}"
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in _MESSAGES
    }


_CLASSES = _built()
PredictRequest, PredictResponse = _CLASSES["PredictRequest"], _CLASSES["PredictResponse"]
