"""The local server's REST paths, as TF-Serving has them, and its page."""

import asyncio
import base64
import json
from pathlib import Path

import numpy as np
import tensorflow as tf
from aiohttp import web
from google.protobuf import json_format

from covkeras.commands.serve_grpc import signature_map
from covkeras.commands.serve_models import STATUSES, Models, invalid, message_of

PAGE = Path(__file__).with_name("page.html")
MAX_BODY = 32 * 2**20


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


_MODEL = r"/v1/models/{name:[^/:]+}"
# A request names its model alone, a version of it, or a label.
_PLACES = (_MODEL, _MODEL + r"/versions/{version:[^/:]+}", _MODEL + r"/labels/{label:[^/:]+}")


class Rest:
    """The REST paths."""

    def __init__(self, models: Models, pool):
        self.models, self.pool = models, pool
        self.app = web.Application(client_max_size=MAX_BODY, middlewares=[self.errors])
        self.app.add_routes([web.get("/", self.page), web.get("/about", self.about)])
        for place in _PLACES:
            paths = [web.get(place, self.status), web.get(f"{place}/metadata", self.metadata)]
            self.app.add_routes([*paths, web.post(f"{place}:predict", self.predict)])

    @web.middleware
    async def errors(self, request, handler):
        try:
            return await handler(request)
        except tf.errors.OpError as error:
            status = next((s for kind, (s, _) in STATUSES.items() if isinstance(error, kind)), 500)
            return web.json_response({"error": message_of(error)}, status=status)
        except web.HTTPException as error:
            return web.json_response({"error": error.reason}, status=error.status)
        except Exception as error:
            print(f"error: {request.method} {request.path}: {error!r}", flush=True)
            return web.json_response({"error": "internal error"}, status=500)

    async def page(self, request):
        return web.FileResponse(PAGE)

    async def about(self, request):
        return web.json_response({name: self.models.about(name) for name in sorted(self.models.loaded)})

    def asked(self, request) -> tuple[str, int | None, str | None]:
        """The name, and the version or the label, or neither."""
        text = request.match_info.get("version")
        if text is not None and not (text.isascii() and text.isdigit() and int(text) < 2**63):
            raise invalid(f"version must be a whole number, got {text!r}")
        version = None if text is None else int(text)
        return request.match_info["name"], version, request.match_info.get("label")

    async def status(self, request):
        name, version, label = self.asked(request)
        if label:
            self.models.find(name, None, label)
        ok = {"error_code": "OK", "error_message": ""}
        versions = self.models.versions(name, version)
        rows = [{"version": str(v), "state": "AVAILABLE", "status": ok} for v in versions]
        return web.json_response({"model_version_status": rows})

    async def metadata(self, request):
        name, version, label = self.asked(request)
        version, definitions = self.models.signature_defs(name, version, label)
        shown = json_format.MessageToDict(
            signature_map(definitions), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        spec = {"name": name, "signature_name": "", "version": str(version)}
        return web.json_response({"model_spec": spec, "metadata": {"signature_def": shown}})

    async def predict(self, request):
        try:
            raw = await request.read()
        except web.HTTPException:
            raise
        except Exception as error:  # such as a body that is not compressed as it claims
            raise invalid(f"the request's body can't be read: {error}") from None
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise invalid(f"JSON Parse error: {error}") from None
        if not isinstance(body, dict):
            raise invalid("JSON Parse error: the request must be an object")
        if not isinstance(body.get("signature_name", ""), str):
            raise invalid("'signature_name' key must be a string value.")
        where = self.asked(request)
        answer = await asyncio.get_running_loop().run_in_executor(self.pool, self._evaluate, *where, body)
        return web.json_response(answer)

    def _evaluate(self, name, version, label, body) -> dict:
        try:
            columns = columns_of(body)
        except RecursionError:
            raise invalid("JSON Parse error: lists are nested too deep") from None
        signature = body.get("signature_name", "") or "serving_default"
        if None in columns:
            _, made = self.models.find(name, version, label)
            if signature in made.model.signatures:
                names = list(made.model.signatures[signature].structured_input_signature[1])
                if len(names) != 1:
                    raise invalid(f"{signature} has the inputs {names}: name them")
                columns = {names[0]: columns[None]}
        _, outputs = self.models.run(name, version, signature, columns, label)
        outputs = {k: plain(v) for k, v in outputs.items()}
        if "inputs" in body:
            return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
        if len(outputs) == 1:
            return {"predictions": next(iter(outputs.values()))}
        return {"predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]}
