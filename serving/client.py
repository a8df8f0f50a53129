"""Asks a TF-Serving (or serving/local.py) for certified predictions of image files; a table, or JSON.

Needs no covkeras and no TensorFlow: REST by the standard library; gRPC with tensorflow-serving-api. Retries only what
the server says is unavailable. Exits with 1 and the server's message on an error.
"""

import argparse
import base64
import contextlib
import json
import os
import sys
import time
import urllib.error
import urllib.request

EXAMPLES = """examples:
  python serving/client.py digit.png --model digits
  python serving/client.py *.png --model digits --url http://server:8501 --signature certify --n 100000 --json
  python serving/client.py digit.png --model digits --grpc server:8500
"""
COLUMNS = ("label", "radius", "certified", "p_lower", "votes", "propagated_radius", "adjoint_radius", "samples")


class Unavailable(Exception):
    """The server can't answer now: worth another try."""


class Refused(Exception):
    """The server's error message, or what is wrong with the request."""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("images", nargs="+", metavar="FILE", help="PNG or JPEG")
    parser.add_argument("--model", required=True, help="the model's name on the server")
    parser.add_argument("--version", type=int, help="of the model (default: the latest)")
    parser.add_argument("--url", default="http://127.0.0.1:8501", help="REST (default: http://127.0.0.1:8501)")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="use gRPC instead, such as 127.0.0.1:8500")
    parser.add_argument(
        "--signature",
        default="serving_bytes",
        choices=("serving_bytes", "certify", "certify_at", "predict", "moments", "logits"),
        help="serving_bytes sends the files as they are; the others decode them here, which needs Pillow and NumPy",
    )
    parser.add_argument("--n0", type=int, default=100, help="with certify: samples to choose the class (default: 100)")
    parser.add_argument("--n", type=int, default=10_000, help="with certify: samples for the bound (default: 10,000)")
    parser.add_argument("--radius", type=float, default=0.25, help="with certify_at (default: 0.25)")
    parser.add_argument("--alpha", type=float, default=0.001, help="with certify and certify_at (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0, help="with certify and certify_at (default: 0)")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3), help="when decoding here (default: 1)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one try (default: 60)")
    parser.add_argument("--retries", type=int, default=3, help="when the server is unavailable (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON, an object per image")
    return parser.parse_args(arguments)


def inputs(flags) -> dict[str, list]:
    """The request's columns: name -> a value per image; file contents as bytes."""
    if flags.signature == "serving_bytes":
        return {"image_bytes": [open(path, "rb").read() for path in flags.images]}
    import numpy as np
    from PIL import Image

    mode = "L" if flags.channels == 1 else "RGB"
    arrays = [np.asarray(Image.open(path).convert(mode), np.float32) / np.float32(255) for path in flags.images]
    columns = {"images": [a[..., None].tolist() if flags.channels == 1 else a.tolist() for a in arrays]}
    count = len(arrays)
    extra = {
        "certify": {"n0": flags.n0, "n": flags.n, "alpha": flags.alpha, "seed": flags.seed},
        "certify_at": {"radius": flags.radius, "alpha": flags.alpha, "seed": flags.seed},
    }
    return columns | {name: [value] * count for name, value in extra.get(flags.signature, {}).items()}


def by_rest(flags, columns) -> list[dict]:
    """POST /v1/models/NAME[/versions/V]:predict in the row format."""

    def plain(value):
        return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value

    count = len(flags.images)
    rows = [{name: plain(values[i]) for name, values in columns.items()} for i in range(count)]
    version = f"/versions/{flags.version}" if flags.version is not None else ""
    body = json.dumps({"signature_name": flags.signature, "instances": rows}).encode()
    request = urllib.request.Request(f"{flags.url}/v1/models/{flags.model}{version}:predict", body)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=flags.timeout) as answer:
            predictions = json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        try:
            text = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            text = text.strip()[:500]
        raise (Unavailable if error.code == 503 else Refused)(f"{error.code}: {text}") from None
    except (urllib.error.URLError, ConnectionError) as error:
        raise Unavailable(f"{flags.url}: {getattr(error, 'reason', error)}") from None
    except TimeoutError:
        raise Refused(f"{flags.url}: no answer within {flags.timeout:g} s") from None
    return [p if isinstance(p, dict) else {flags.signature: p} for p in predictions]


TYPES = {"images": ("float32", "DT_FLOAT"), "alpha": ("float64", "DT_DOUBLE"), "radius": ("float64", "DT_DOUBLE")}


@contextlib.contextmanager
def quiet():
    """Keeps stderr silent: the generated stubs import TensorFlow, which talks at its start, in C++."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


def by_grpc(flags, columns) -> list[dict]:
    """PredictionService.Predict."""
    import grpc
    import numpy as np

    with quiet():
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = flags.model, flags.signature
    if flags.version is not None:
        request.model_spec.version.value = flags.version
    for name, values in columns.items():
        tensor = request.inputs[name]
        if name == "image_bytes":
            tensor.dtype, shape = 7, (len(values),)  # DT_STRING
            tensor.string_val.extend(values)
        else:
            kind, dtype = TYPES.get(name, ("int64", "DT_INT64"))
            array = np.asarray(values, kind)
            tensor.dtype, shape = {"DT_FLOAT": 1, "DT_DOUBLE": 2, "DT_INT64": 9}[dtype], array.shape
            tensor.tensor_content = array.tobytes()
        for size in shape:
            tensor.tensor_shape.dim.add().size = size
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(flags.grpc, options=options) as channel:
        try:
            answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=flags.timeout)
        except grpc.RpcError as error:
            kind = Unavailable if error.code() == grpc.StatusCode.UNAVAILABLE else Refused
            raise kind(f"{error.code().name}: {error.details()}") from None
    columns = {name: _values(tensor) for name, tensor in answer.outputs.items()}
    return [{name: values[i] for name, values in columns.items()} for i in range(len(flags.images))]


def _values(tensor) -> list:
    """A TensorProto's values, one per row."""
    import numpy as np

    shape = [d.size for d in tensor.tensor_shape.dim]
    if tensor.dtype == 7:
        return [v.decode() for v in tensor.string_val]
    kinds = {
        1: ("float32", "float_val"),
        2: ("float64", "double_val"),
        9: ("int64", "int64_val"),
        10: ("bool", "bool_val"),
    }
    kind, field = kinds[tensor.dtype]
    content = tensor.tensor_content
    array = np.frombuffer(content, kind) if content else np.array(getattr(tensor, field), kind)
    return np.broadcast_to(array if array.size != 1 else array[0], shape or None).tolist() if shape else array.tolist()


def ask(flags) -> list[dict]:
    """Sends the request; tries again, waiting longer each time, where the server is unavailable."""
    columns = inputs(flags)
    for attempt in range(flags.retries + 1):
        try:
            return by_grpc(flags, columns) if flags.grpc else by_rest(flags, columns)
        except Unavailable as error:
            if attempt == flags.retries:
                raise Refused(str(error)) from None
            time.sleep(0.5 * 2**attempt)
    raise AssertionError


def table(flags, answers: list[dict]) -> str:
    shown = [c for c in COLUMNS if c in answers[0]] or sorted(answers[0])
    rows = [["image", *shown]]
    for path, answer in zip(flags.images, answers, strict=True):
        values = [answer[c] for c in shown]
        rows.append([path, *(f"{v:.4f}" if isinstance(v, float) else str(v) for v in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(arguments=None) -> int:
    flags = parse(arguments)
    try:
        answers = ask(flags)
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if flags.json:
        for path, answer in zip(flags.images, answers, strict=True):
            print(json.dumps({"image": path, **answer}))
    else:
        print(table(flags, answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
