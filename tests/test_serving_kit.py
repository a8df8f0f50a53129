"""The local server and the client under what their users do: files that come and go, types, labels, ports, names."""

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import forked
import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from kit import LIMIT, SERVING, SIZE, Server, free_port, make_export, wait_for
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

GOOD = np.full((1, SIZE, SIZE, 1), 51 / 255, np.float32)
NUMBERS = {"n0": 20, "n": 400, "alpha": 0.001, "seed": 7}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    make_export(folder / "digits" / "1")
    shutil.copytree(folder / "digits", folder / "zähl werk")
    server = Server(folder)
    yield server, folder
    server.stop()


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "0.png"
    path.write_bytes(tf.io.encode_png(np.full((SIZE, SIZE, 1), 51, np.uint8)).numpy())
    return path


def versions_of(server, name="digits"):
    status, body = server.request("GET", f"/v1/models/{name}")
    return [row["version"] for row in body["model_version_status"]] if status == 200 else []


def test_versions_that_come_broken_replaced_and_gone(tmp_path):
    """A half copied version is waited for; a replaced one is served anew; a removed one no more; 02 is version 2."""
    model = tmp_path / "exports" / "m"
    make_export(model / "1")
    make_export(tmp_path / "other" / "1", seed=5)
    server = Server(tmp_path / "exports")
    try:
        first = server.predict(GOOD, "m", **NUMBERS)[1]
        (model / "02" / "variables").mkdir(parents=True)
        shutil.copy(tmp_path / "other" / "1" / "saved_model.pb", model / "02")
        wait_for(lambda: any("m version 2 can't be loaded yet" in line for line in server.lines))
        assert server.predict(GOOD, "m", **NUMBERS)[1] == first and server.process.poll() is None
        shutil.copytree(tmp_path / "other" / "1", model / "02", dirs_exist_ok=True)
        wait_for(lambda: versions_of(server, "m") == ["2", "1"])
        second = server.predict(GOOD, "m", **NUMBERS)[1]
        assert second != first and server.request("GET", "/about")[1]["m"]["version"] == 2
        assert sum("can't be loaded" in line for line in server.lines) <= 2

        shutil.rmtree(model / "1")
        shutil.copytree(tmp_path / "other" / "1", model / "1")
        # Reloaded, or unloaded and loaded where a look fell between the two.
        wait_for(lambda: server.predict(GOOD, "m", "/versions/1", **NUMBERS)[1] == second)
        shutil.rmtree(model / "02")
        wait_for(lambda: versions_of(server, "m") == ["1"])
        assert server.predict(GOOD, "m", "/versions/2")[0] == 404
        shutil.rmtree(model)
        wait_for(lambda: server.request("GET", "/v1/models/m")[0] == 404)
        assert server.request("GET", "/about")[1] == {}
    finally:
        server.stop()
    assert not any("Traceback" in line or "custom gradient" in line for line in server.lines), server.lines


TYPES = {
    "a fraction": {"n": 400.7},
    "a whole fraction": {"n": 400.0},
    "text": {"n": "400"},
    "true": {"n": True},
    "null": {"n": None},
    "a list": {"n": [400]},
    "an object": {"n": {"b": 1}},
    "too large": {"n": 10**30},
    "alpha as text": {"alpha": "0.001"},
    "alpha true": {"alpha": True},
    "too few for alpha": {"n": 9},
}


@pytest.mark.parametrize("case", TYPES)
def test_values_of_another_type_are_refused_not_cast(served, case):
    status, body = served[0].predict(GOOD, **{**NUMBERS, **TYPES[case]})
    assert status == 400 and list(body) == ["error"], body
    assert served[0].predict(GOOD, **{**NUMBERS, "alpha": 1e-2})[0] == 200


@pytest.mark.parametrize(
    "path, body, status, message",
    [
        ("digits:predict", {"instances": [1], "signature_name": ["logits"]}, 400, "must be a string"),
        ("digits:predict", {"instances": [1], "signature_name": 3}, 400, "must be a string"),
        ("digits/versions/²:predict", {"instances": [1]}, 400, "version must be a whole number"),
        ("digits/versions/99999999999999999999:predict", {"instances": [1]}, 400, "version must be a whole number"),
        ("digits/versions/-1", None, 400, "version must be a whole number"),
        ("digits/labels/stable:predict", {"instances": [1]}, 400, "Unrecognized servable version label: stable"),
        ("digits/labels/stable", None, 400, "Unrecognized servable version label: stable"),
        ("digits/versions/9", None, 404, "Could not find version 9 of model digits"),
        ("nothing", None, 404, "Could not find any versions of model nothing"),
        ("digits/versions/9/metadata", None, 404, "Specific(digits, 9)"),
        ("digits:predict", b"\xff\xfe{", 400, "JSON Parse error"),
        ("digits:predict", {"inputs": {"images": [[1, [2]]]}}, 400, "is not a float32 array"),
        ("digits:predict", {"instances": {"a": 1}}, 400, "must be a list"),
        ("digits:predict", {"instances": [None]}, 400, "is not a float32 array"),
        ("digits:predict", {"instances": ["a"], "signature_name": "serving_bytes"}, 400, "image must be a PNG or JPEG"),
    ],
)
def test_bad_requests_are_no_server_errors(served, path, body, status, message):
    from urllib.parse import quote

    got, answer = served[0].request("GET" if body is None else "POST", quote(f"/v1/models/{path}", safe="/:"), body)
    assert got == status and message in answer["error"], answer


def test_a_body_that_claims_to_be_compressed(served):
    import http.client

    body = json.dumps({"instances": GOOD.tolist(), "signature_name": "logits"}).encode()
    for data, status in ((body, 400), (gzip.compress(body), 200)):
        connection = http.client.HTTPConnection("127.0.0.1", served[0].rest, timeout=60)
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        connection.request("POST", "/v1/models/digits:predict", data, headers)
        answer = connection.getresponse()
        assert answer.status == status, answer.read()
        connection.close()


def stubs(server):
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc}")
    return prediction_service_pb2_grpc.PredictionServiceStub(channel), model_service_pb2_grpc.ModelServiceStub(channel)


def request_of(signature="certify", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "digits", signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def refusal(call, *arguments):
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments, timeout=60)
    return error.value.code(), error.value.details()


EXACT = {"images": GOOD, "n0": np.int64([20]), "n": np.int64([400]), "alpha": np.float64([1e-3]), "seed": np.int64([7])}


def test_grpc_types_are_exact(served):
    predict = stubs(served[0])[0].Predict
    assert predict(request_of(**EXACT), timeout=60).outputs["samples"].int64_val[0] == 420
    for name, value in (
        ("n", np.int32([400])),
        ("n", np.float64([400])),
        ("alpha", np.float32([1e-3])),
        ("images", GOOD.astype(np.float64)),
        ("seed", np.array([b"7"])),
    ):
        code, details = refusal(predict, request_of(**{**EXACT, name: value}))
        assert code == grpc.StatusCode.INVALID_ARGUMENT and f"input '{name}' must be" in details


def test_output_filter_labels_status_and_metadata_over_grpc(served):
    predictions, status = stubs(served[0])
    request = request_of(**EXACT)
    request.output_filter.append("radius")
    assert list(predictions.Predict(request, timeout=60).outputs) == ["radius"]
    request.output_filter.append("magic")
    assert "output tensor alias not found in signature: magic" in refusal(predictions.Predict, request)[1]
    labelled = request_of(**EXACT)
    labelled.model_spec.version_label = "stable"
    code, details = refusal(predictions.Predict, labelled)
    assert code == grpc.StatusCode.INVALID_ARGUMENT and details == "Unrecognized servable version label: stable"

    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "digits"
    assert [v.version for v in status.GetModelStatus(asked, timeout=60).model_version_status] == [1]
    asked.model_spec.version.value = 9
    assert refusal(status.GetModelStatus, asked) == (
        grpc.StatusCode.NOT_FOUND,
        "Could not find version 9 of model digits",
    )

    about = get_model_metadata_pb2.GetModelMetadataRequest()
    about.model_spec.name = "digits"
    assert "at least one metadata_field" in refusal(predictions.GetModelMetadata, about)[1]
    about.metadata_field.append("signature_def")
    answer = predictions.GetModelMetadata(about, timeout=60)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures) and answer.model_spec.version.value == 1
    radius = signatures.signature_def["certify"].outputs["radius"]
    assert radius.dtype == tf.float32.as_datatype_enum and radius.name.startswith("StatefulPartitionedCall")
    shown = json_format.MessageToDict(
        signatures, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for path in ("digits/metadata", "digits/versions/1/metadata"):
        code, body = served[0].request("GET", f"/v1/models/{path}")
        assert code == 200 and body["model_spec"] == {"name": "digits", "signature_name": "", "version": "1"}
        assert body["metadata"]["signature_def"] == shown
    images = shown["signature_def"]["serving_default"]["inputs"]["images"]
    assert images["dtype"] == "DT_FLOAT" and [d["size"] for d in images["tensor_shape"]["dim"]] == ["-1", "8", "8", "1"]


def run_client(*arguments, **environment):
    command = [sys.executable, str(SERVING / "client.py"), *map(str, arguments)]
    env = {**os.environ, **environment}
    started = time.monotonic()
    done = forked.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    return done, time.monotonic() - started


def test_the_client_takes_addresses_and_names_as_they_are_typed(served, png):
    server, _ = served
    expected = run_client(png, "--model", "digits", "--url", f"http://127.0.0.1:{server.rest}")[0].stdout
    assert expected.count("\n") == 2
    proxy = {
        "http_proxy": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    for url, environment in (
        (f"127.0.0.1:{server.rest}", {}),
        (f"localhost:{server.rest}/", {}),
        (f"http://127.0.0.1:{server.rest}//", proxy),
    ):
        done, _ = run_client(png, "--model", "digits", "--url", url, **environment)
        assert done.stdout == expected, done.stderr
    named = run_client(png, "--model", "zähl werk", "--url", f"127.0.0.1:{server.rest}")[0]
    assert named.stdout == expected, named.stderr
    by_grpc = run_client(png, "--model", "zähl werk", "--grpc", f"127.0.0.1:{server.grpc}", **proxy)[0]
    assert by_grpc.stdout == expected, by_grpc.stderr


def test_the_client_refuses_in_one_line(served, png, tmp_path):
    server, _ = served
    rest, remote = ["--url", f"127.0.0.1:{server.rest}"], ["--grpc", f"127.0.0.1:{server.grpc}"]
    wide = tmp_path / "wide.png"
    wide.write_bytes(tf.io.encode_png(np.zeros((SIZE, SIZE + 1, 1), np.uint8)).numpy())
    cases = [
        ([png, "--url", f"127.0.0.1:{server.grpc}"], "Is it the REST port?"),
        ([png, "--url", "ftp://127.0.0.1"], "url must be such as"),
        ([png, "--url", "http://"], "url must be such as"),
        ([png, "--version", 9, *rest], "Specific(digits, 9)"),
        *[([png, wide, "--signature", "logits", *to], "images must have one size") for to in (rest, remote)],
        *[
            ([wide, *to], "image must be 8 x 8 (height x width), as the classifier takes it: resize it, got 8 9")
            for to in (rest, remote)
        ],
        *[
            ([png, "--signature", "certify", "--n", 10**30, *to], "n must be a whole number from 0 to")
            for to in (rest, remote)
        ],
        *[
            ([png, "--signature", "certify", "--n", LIMIT + 1, *to], f"n must lie in [1, {LIMIT}]")
            for to in (rest, remote)
        ],
        ([tmp_path, *rest], "Is a directory"),
    ]
    for arguments, message in cases:
        done, seconds = run_client("--model", "digits", *arguments)
        assert done.returncode == 1 and message in done.stderr and done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1 and seconds < 15


def test_the_client_needs_no_tensorflow(png):
    program = (
        "import sys\n"
        "from covkeras.commands import client\n"
        f"flags = client.parse([{str(png)!r}, '--model', 'm', '--grpc', '127.0.0.1:{free_port()}', '--timeout', '1'])\n"
        "columns = client.inputs(flags)\n"
        "try: client.by_grpc(flags, columns)\n"
        "except client.Unavailable: pass\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_the_clients_messages_are_tf_servings():
    """Built from field numbers, they read what the generated stubs write, and the other way round."""
    from covkeras.commands.client_protos import METHOD, PredictRequest, PredictResponse

    theirs = request_of(**EXACT, image_bytes=np.array([b"a", b"b"]))
    theirs.model_spec.version.value = 3
    ours = PredictRequest.FromString(theirs.SerializeToString())
    again = predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    assert again == theirs and ours.model_spec.version.value == 3
    response = predict_pb2.PredictResponse()
    response.model_spec.name = "m"
    for name, value in (("b", [True]), ("d", [0.5]), ("f", np.float32([1])), ("s", [b"x"]), ("i", np.int64([2]))):
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    assert {e.key for e in PredictResponse.FromString(response.SerializeToString()).outputs} == set("bdfsi")
    service = predict_pb2.DESCRIPTOR.package
    assert f"/{service}.PredictionService/Predict" == METHOD


@pytest.mark.parametrize("flag", ["--rest-port", "--grpc-port"])
def test_a_taken_port_is_one_line(served, flag):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = {"--rest-port": free_port(), "--grpc-port": free_port(), flag: taken.getsockname()[1]}
        command = [sys.executable, str(SERVING / "local.py"), str(served[1])]
        command += [str(part) for pair in ports.items() for part in pair]
        done = forked.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"choose another {flag}" in done.stderr, (
        done.stderr
    )


def test_an_export_loads_without_a_word_about_gradients(tmp_path):
    make_export(tmp_path / "m" / "1")
    program = "import sys, tensorflow as tf; tf.saved_model.load(sys.argv[1])"
    command = [sys.executable, "-c", program, str(tmp_path / "m" / "1")]
    done = forked.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "gradient" not in done.stderr, done.stderr


def test_an_export_answers_as_the_classifier_that_was_handed_over(tmp_path, rng):
    """An adapted Normalization, copied into bfloat16 or not, in the file as in Python."""
    from conftest import grid_images

    from covkeras import SmoothedClassifier
    from covkeras.exporting import export

    images = grid_images(rng, 16, SIZE)
    normal = keras.layers.Normalization(axis=-1)
    normal.adapt(0.2 * images)
    model = keras.Sequential([keras.Input((SIZE, SIZE, 1)), normal, keras.layers.Flatten(), keras.layers.Dense(3)])
    for version, precision in ((1, None), (2, "bfloat16")):
        smoothed = SmoothedClassifier(model, 0.25, precision=precision)
        folder = export(smoothed, tmp_path / "m" / str(version), key=(1, 2))
        logits = tf.saved_model.load(str(folder)).signatures["logits"](images=tf.constant(images))["logits"]
        scale = np.abs(model(images)).max()
        np.testing.assert_allclose(logits, model(images), atol=scale * (0.02 if precision else 1e-5))
    smoothed = SmoothedClassifier(model, 0.25)
    model.layers[-1].kernel.assign(np.full((SIZE * SIZE, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="must have finite weights"):
        export(smoothed, tmp_path / "m" / "3")
    assert not (tmp_path / "m" / "3").exists()
