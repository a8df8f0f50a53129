"""Asks a TF-Serving (or `covkeras serve`) for certified predictions of image files; a table, or JSON.

Needs no TensorFlow: REST by the standard library; gRPC by grpcio; Pillow and NumPy for what is decoded here. Retries
only what is unavailable. Exits with 1 and the server's message on an error.
"""

import argparse
import base64
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from covkeras.commands.client_images import Refused, pixels

EXAMPLES = """examples:
  covkeras client serving/digit.png --model digits
  covkeras client *.png --model digits --url http://server:8501 --signature certify --n 100000 --json
  covkeras client serving/digit.png --model digits --grpc server:8500
"""
SIGNATURES = ("serving_bytes", "certify", "certify_at", "certify_sigma", "certify_best", "predict", "moments", "logits")
COLUMNS = (
    "label",
    "radius",
    "sigma",
    "certified",
    "p_lower",
    "votes",
    "propagated_radius",
    "adjoint_radius",
    "samples",
)


class Unavailable(Exception):
    """The server can't answer now: worth another try."""


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
        choices=SIGNATURES,
        help="serving_bytes sends the files as they are; the others decode them here, which needs Pillow and NumPy",
    )
    parser.add_argument("--n0", type=int, default=100, help="with certify: samples to choose the class (default: 100)")
    parser.add_argument("--n", type=int, default=10_000, help="with certify: samples for the bound (default: 10,000)")
    parser.add_argument("--sigma", type=float, default=0.25, help="with certify_sigma (default: 0.25)")
    parser.add_argument("--radius", type=float, default=0.25, help="with certify_at (default: 0.25)")
    parser.add_argument("--alpha", type=float, default=0.001, help="with all that certify (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0, help="with all that certify (default: 0)")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3), help="when decoding here (default: 1)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one try (default: 60)")
    parser.add_argument("--retries", type=int, default=3, help="when the server is unavailable (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON, an object per image")
    return parser.parse_args(arguments)


def inputs(flags) -> dict[str, list]:
    """The request's columns: name -> a value per image; file contents as bytes."""
    if flags.signature == "serving_bytes":
        columns = []
        for path in flags.images:
            with open(path, "rb") as file:
                columns.append(file.read())
        return {"image_bytes": columns}
    arrays = [pixels(path, flags.channels) for path in flags.images]
    sizes = {a.shape[:2]: path for a, path in zip(arrays, flags.images, strict=True)}
    if len(sizes) > 1:
        listed = ", ".join(f"{path}: {h} x {w}" for (h, w), path in sizes.items())
        raise Refused(f"images must have one size (height x width), got {listed}: resize them, or ask for each alone")
    budget = {"n0": flags.n0, "n": flags.n, "alpha": flags.alpha, "seed": flags.seed}
    extra = {
        "certify": budget,
        "certify_best": budget,
        "certify_sigma": {"sigma": flags.sigma, **budget},
        "certify_at": {"radius": flags.radius, "alpha": flags.alpha, "seed": flags.seed},
    }
    columns = {name: [value] * len(arrays) for name, value in extra.get(flags.signature, {}).items()}
    return {"images": [a.tolist() for a in arrays], **columns}


def check(flags) -> None:
    """Refuses numbers that no server can be asked for. What a model allows, the server says itself."""
    for name in ("n0", "n", "seed", "version"):
        value = getattr(flags, name)
        if value is not None and not 0 <= value < 2**63:
            raise Refused(f"{name} must be a whole number from 0 to 2^63 - 1, got {value}")
    for name, most in (("timeout", 10**6), ("sigma", 10), ("alpha", 1)):
        if not 0 < getattr(flags, name) <= most:
            raise Refused(f"{name} must be a number above 0, {most:,} at most, got {getattr(flags, name):g}")
    if not 0 <= flags.radius < float("inf"):
        raise Refused(f"radius must be a number, 0 or more, got {flags.radius:g}")
    if not 0 <= flags.retries <= 100:
        raise Refused(f"retries must be a whole number from 0 to 100, got {flags.retries}")
    if not flags.model:
        raise Refused("model must be a name, got none")
    if flags.grpc is not None:
        host, _, port = flags.grpc.rpartition(":")
        if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
            raise Refused(f"grpc must be HOST:PORT, such as 127.0.0.1:8500, got {flags.grpc!r}")


def address(url: str) -> str:
    """The server's address as it was meant: with a scheme, without a slash at its end."""
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parts = urllib.parse.urlsplit(url)
        meant = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that don't close; a port beyond 65535
        meant = False
    if not meant:
        raise Refused(f"url must be such as http://127.0.0.1:8501, got {url}")
    return url


def is_here(host: str) -> bool:
    """Whether a host is this machine: then no proxy leads there."""
    return host in ("localhost", "::1") or host.startswith("127.")


def said(error: urllib.error.HTTPError) -> str:
    """The server's message in an HTTP error."""
    text = error.read().decode(errors="replace")
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text.strip()[:500]


def by_rest(flags, columns) -> list[dict]:
    """POST /v1/models/NAME[/versions/V]:predict in the row format."""

    def plain(value):
        return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value

    url, count = address(flags.url), len(flags.images)
    rows = [{name: plain(values[i]) for name, values in columns.items()} for i in range(count)]
    version = f"/versions/{flags.version}" if flags.version is not None else ""
    body = json.dumps({"signature_name": flags.signature, "instances": rows}).encode()
    model = urllib.parse.quote(flags.model, safe="")
    request = urllib.request.Request(f"{url}/v1/models/{model}{version}:predict", body)
    request.add_header("Content-Type", "application/json")
    proxies = {} if is_here(urllib.parse.urlsplit(url).hostname) else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        with opener.open(request, timeout=flags.timeout) as answer:
            predictions = json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        raise (Unavailable if error.code == 503 else Refused)(f"{error.code}: {said(error)}") from None
    except (TimeoutError, urllib.error.URLError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise Refused(f"{url}: no answer within {flags.timeout:g} s") from None
        # A refused connection may be a server that starts; a name that leads nowhere will go on doing so.
        kind = Unavailable if isinstance(reason, ConnectionError) else Refused
        raise kind(f"{url}: {reason}") from None
    except (http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{url}: no answer of TF-Serving's REST API ({error!r:.80}). Is it the REST port?") from None
    return [p if isinstance(p, dict) else {flags.signature: p} for p in predictions]


def by_grpc(flags, columns) -> list[dict]:
    """PredictionService.Predict."""
    import grpc
    import numpy as np

    from covkeras.commands.client_protos import METHOD, PredictRequest, PredictResponse

    request = PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = flags.model, flags.signature
    if flags.version is not None:
        request.model_spec.version.value = flags.version
    for name, values in columns.items():
        tensor = request.inputs.add(key=name).value
        if name == "image_bytes":
            tensor.dtype, shape = 7, (len(values),)  # DT_STRING
            tensor.string_val.extend(values)
        else:
            array = np.asarray(
                values, {"images": "float32", "alpha": "float64", "radius": "float64"}.get(name, "int64")
            )
            tensor.dtype, shape = {"float32": 1, "float64": 2, "int64": 9}[array.dtype.name], array.shape
            tensor.tensor_content = array.tobytes()
        for size in shape:
            tensor.tensor_shape.dim.add().size = size
    here = is_here(flags.grpc.rpartition(":")[0].strip("[]"))
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    options += [("grpc.enable_http_proxy", 0)] if here else []
    with grpc.insecure_channel(flags.grpc, options=options) as channel:
        predict = channel.unary_unary(METHOD, PredictRequest.SerializeToString, PredictResponse.FromString)
        try:
            answer = predict(request, timeout=flags.timeout)
        except grpc.RpcError as error:
            kind = Unavailable if error.code() == grpc.StatusCode.UNAVAILABLE else Refused
            raise kind(f"{error.code().name}: {error.details()}") from None
    columns = {entry.key: _values(entry.value) for entry in answer.outputs}
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
    if array.size == 1:
        # One value for all, as a server may send it.
        array = np.full(shape, array[0])
    return array.reshape(shape).tolist()


def ask(flags) -> list[dict]:
    """Sends the request; tries again, waiting longer each time, where the server is unavailable."""
    check(flags)
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
    flags.images = [os.path.expanduser(path) for path in flags.images]
    try:
        answers = ask(flags)
    except (Refused, OSError) as error:
        told = isinstance(error, OSError) and error.strerror and error.filename is not None
        print(f"error: {f'{error.filename}: {error.strerror}' if told else error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"error: {error}: pip install pillow numpy, and grpcio protobuf for --grpc", file=sys.stderr)
        return 1
    if flags.json:
        for path, answer in zip(flags.images, answers, strict=True):
            print(json.dumps({"image": path, **answer}))
    else:
        print(table(flags, answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
