"""Serves exported models over TF-Serving's REST paths and gRPC service, for development and tests. Not for production.

    python serving/local.py exports            exports/NAME/VERSION, the latest version of each model, and new ones
                                               as they appear

A page to draw or choose an image is at the REST port's root. Ctrl-C or SIGTERM finishes the requests in flight.
"""

import argparse
import asyncio
import base64
import concurrent.futures
import json
import signal
import sys
from pathlib import Path

from covkeras import startup

startup.quiet_tensorflow()

import grpc  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from aiohttp import web  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

PAGE = Path(__file__).with_name("page.html")
MAX_BODY = 32 * 2**20
# TensorFlow's errors as REST and gRPC have them.
STATUSES = {
    tf.errors.InvalidArgumentError: (400, grpc.StatusCode.INVALID_ARGUMENT),
    tf.errors.NotFoundError: (404, grpc.StatusCode.NOT_FOUND),
    tf.errors.ResourceExhaustedError: (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
}


class Models:
    """The loaded versions of the models under a folder: all there are, the latest being the default."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.loaded: dict[str, dict[int, tf.Module]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Loads versions that are new. A version's folder appears whole: the export renames it."""
        for path in sorted(self.folder.glob("*/*/saved_model.pb")):
            version, name = path.parent.name, path.parent.parent.name
            if version.isdigit() and int(version) not in self.loaded.get(name, {}):
                model = tf.saved_model.load(str(path.parent))
                self.loaded[name] = {**self.loaded.get(name, {}), int(version): model}
                print(f"loaded {name} version {version}", flush=True)

    def find(self, name: str, version: int | None):
        """Returns (version, model). Raises NotFoundError in TF-Serving's words."""
        versions = self.loaded.get(name, {})
        chosen = max(versions, default=None) if version is None else version
        if chosen not in versions:
            asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise tf.errors.NotFoundError(None, None, f"Servable not found for request: {asked}")
        return chosen, versions[chosen]

    def about(self, name: str) -> dict:
        version, _ = self.find(name, None)
        path = self.folder / name / str(version) / "assets.extra" / "metadata.json"
        return {"version": version, **(json.loads(path.read_text()) if path.exists() else {})}

    def run(self, name: str, version: int | None, signature: str, inputs: dict) -> tuple[int, dict]:
        """Evaluates a signature on named arrays. Raises tf.errors.OpError."""
        version, model = self.find(name, version)
        signature = signature or "serving_default"
        if signature not in model.signatures:
            raise invalid(f'Serving signature name: "{signature}" not found in signature def')
        function = model.signatures[signature]
        specs = function.structured_input_signature[1]
        if set(inputs) != set(specs):
            raise invalid(f"input keys {sorted(inputs)} are not those of {signature}: {sorted(specs)}")
        tensors = {name: tensor_of(name, value, specs[name]) for name, value in inputs.items()}
        batches = {t.shape[0] for t in tensors.values()}
        if len(batches) != 1:
            raise invalid(f"inputs must share the batch axis, got sizes {sorted(batches)}")
        return version, {k: v.numpy() for k, v in function(**tensors).items()}


def invalid(message: str) -> tf.errors.InvalidArgumentError:
    return tf.errors.InvalidArgumentError(None, None, message)


def tensor_of(name: str, value, spec: tf.TensorSpec) -> tf.Tensor:
    """An input as the signature wants it."""
    try:
        array = np.asarray(value, object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid(f"input {name!r} is not a {spec.dtype.name} array: {error}") from None
    if not spec.shape.is_compatible_with(array.shape):
        raise invalid(f"input {name!r} must have shape {spec.shape}, got {list(array.shape)}")
    return tf.constant(array, spec.dtype)


def columns_of(body: dict) -> dict:
    """The named inputs of a REST request: row format (instances) or column format (inputs)."""
    if ("instances" in body) == ("inputs" in body):
        raise invalid("Request must have either 'instances' or 'inputs'")
    if "inputs" in body:
        columns = body["inputs"] if isinstance(body["inputs"], dict) else {None: body["inputs"]}
    else:
        rows = body["instances"]
        if not isinstance(rows, list) or not rows:
            raise invalid("'instances' must be a list that is not empty")
        named = all(isinstance(r, dict) and set(r) != {"b64"} for r in rows)
        names = list(rows[0]) if named else [None]
        if named and any(set(r) != set(names) for r in rows):
            raise invalid("every instance must have the same keys")
        columns = {n: [r[n] for r in rows] for n in names} if named else {None: rows}
    return {name: bytes_of(value) for name, value in columns.items()}


def bytes_of(value):
    """Replaces {"b64": text} by its bytes, at any depth."""
    if isinstance(value, dict):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (KeyError, ValueError, TypeError):
            raise invalid('an object must be {"b64": BASE64}') from None
    return [bytes_of(v) for v in value] if isinstance(value, list) and contains_objects(value) else value


def contains_objects(value) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and contains_objects(value[0]))


def plain(value):
    """NumPy to JSON: strings decoded."""
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value] if value.dtype == object else value.tolist()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def message_of(error: tf.errors.OpError) -> str:
    """The op's message: the assertion's own text, without where in the graph it is."""
    lines = [line.strip() for line in (error.message or "").splitlines()]
    kept = [s for s in lines if s and not s.startswith(("Graph execution", "Detected at", "<stack", "[[{{"))]
    asserted = [s.strip("[]") for s in kept if s.startswith("[") and s.endswith("]")]
    return "\n".join(asserted or kept).split(" [Op:")[0].strip()


class Rest:
    """The REST paths."""

    def __init__(self, models: Models, pool):
        self.models, self.pool = models, pool
        self.app = web.Application(client_max_size=MAX_BODY, middlewares=[self.errors])
        self.app.add_routes(
            [
                web.get("/", self.page),
                web.get("/about", self.about),
                web.get(r"/v1/models/{name:[^/:]+}", self.status),
                web.get(r"/v1/models/{name:[^/:]+}/versions/{version:[^/:]+}", self.status),
                web.get(r"/v1/models/{name:[^/:]+}/metadata", self.metadata),
                web.post(r"/v1/models/{name:[^/:]+}:predict", self.predict),
                web.post(r"/v1/models/{name:[^/:]+}/versions/{version:[^/:]+}:predict", self.predict),
            ]
        )

    @web.middleware
    async def errors(self, request, handler):
        try:
            return await handler(request)
        except tf.errors.OpError as error:
            status = next((s for kind, (s, _) in STATUSES.items() if isinstance(error, kind)), 500)
            return web.json_response({"error": message_of(error)}, status=status)
        except web.HTTPException as error:
            return web.json_response({"error": error.reason}, status=error.status)

    async def page(self, request):
        return web.FileResponse(PAGE)

    async def about(self, request):
        return web.json_response({name: self.models.about(name) for name in sorted(self.models.loaded)})

    def version(self, request) -> int | None:
        text = request.match_info.get("version")
        if text is not None and not text.isdigit():
            raise invalid(f"version must be a whole number, got {text!r}")
        return None if text is None else int(text)

    async def status(self, request):
        name, version = request.match_info["name"], self.version(request)
        self.models.find(name, version)
        versions = [version] if version is not None else sorted(self.models.loaded[name], reverse=True)
        ok = {"error_code": "OK", "error_message": ""}
        rows = [{"version": str(v), "state": "AVAILABLE", "status": ok} for v in versions]
        return web.json_response({"model_version_status": rows})

    async def metadata(self, request):
        version, model = self.models.find(request.match_info["name"], None)
        signatures = {
            name: {
                "inputs": {k: [s.dtype.name, s.shape.as_list()] for k, s in f.structured_input_signature[1].items()},
                "outputs": {k: [s.dtype.name, s.shape.as_list()] for k, s in f.structured_outputs.items()},
            }
            for name, f in model.signatures.items()
        }
        spec = {"name": request.match_info["name"], "signature_name": "", "version": str(version)}
        return web.json_response({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})

    async def predict(self, request):
        raw = await request.read()
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise invalid(f"JSON Parse error: {error}") from None
        if not isinstance(body, dict):
            raise invalid("JSON Parse error: the request must be an object")
        name, version = request.match_info["name"], self.version(request)
        answer = await asyncio.get_running_loop().run_in_executor(self.pool, self._evaluate, name, version, body)
        return web.json_response(answer)

    def _evaluate(self, name, version, body) -> dict:
        columns = columns_of(body)
        signature = body.get("signature_name", "") or "serving_default"
        if None in columns:
            _, model = self.models.find(name, version)
            if signature in model.signatures:
                names = list(model.signatures[signature].structured_input_signature[1])
                if len(names) != 1:
                    raise invalid(f"{signature} has the inputs {names}: name them")
                columns = {names[0]: columns[None]}
        _, outputs = self.models.run(name, version, signature, columns)
        outputs = {k: plain(v) for k, v in outputs.items()}
        if "inputs" in body:
            return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
        if len(outputs) == 1:
            return {"predictions": next(iter(outputs.values()))}
        return {"predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]}


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


async def serve(flags, models: Models) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    pool = concurrent.futures.ThreadPoolExecutor(flags.threads)
    runner = web.AppRunner(Rest(models, pool).app, shutdown_timeout=flags.grace)
    await runner.setup()
    await web.TCPSite(runner, flags.host, flags.rest_port).start()
    limit = [("grpc.max_receive_message_length", MAX_BODY)]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(flags.threads), options=limit)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(models), server)
    server.add_insecure_port(f"{flags.host}:{flags.grpc_port}")
    server.start()
    print(f"REST http://{flags.host}:{flags.rest_port}  gRPC {flags.host}:{flags.grpc_port}", flush=True)
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), flags.poll)
        except TimeoutError:
            await asyncio.get_running_loop().run_in_executor(pool, models.refresh)
    print("finishing the requests in flight", flush=True)
    finished = server.stop(flags.grace)
    await runner.cleanup()
    await asyncio.get_running_loop().run_in_executor(None, finished.wait)
    pool.shutdown()


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("exports", help="a folder of models: NAME/VERSION/saved_model.pb")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default: 127.0.0.1)")
    parser.add_argument("--rest-port", type=int, default=8501, help="default: 8501")
    parser.add_argument("--grpc-port", type=int, default=8500, help="default: 8500")
    parser.add_argument("--threads", type=int, default=4, help="requests evaluated at a time (default: 4)")
    parser.add_argument("--poll", type=float, default=2.0, help="seconds between looks for new versions (default: 2)")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds for requests in flight (default: 60)")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    flags = parse(arguments)
    models = Models(Path(flags.exports))
    if not models.loaded:
        print(
            f"error: {flags.exports} holds no NAME/VERSION/saved_model.pb: serving/export.py makes one", file=sys.stderr
        )
        return 2
    asyncio.run(serve(flags, models))
    return 0


if __name__ == "__main__":
    sys.exit(main())
