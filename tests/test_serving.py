"""The deployment kit as its users meet it: files through TF-Serving's protos, client and local server over sockets."""

import concurrent.futures
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import forked
import grpc
import numpy as np
import psutil
import pytest
import tensorflow as tf
from conftest import grid_images
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from kit import LIMIT, SERVING, SIZE, Server, free_port, make_export, wait_for
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2


def messages(name: str, fields: dict[str, tuple[int, str]]) -> type:
    """A message of TF-Serving's that its API package doesn't ship, from its published field numbers."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="tensorflow.serving", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    kinds = descriptor_pb2.FieldDescriptorProto
    nested = file.message_type.add(name="PrometheusConfig")
    nested.field.add(name="enable", number=1, type=kinds.TYPE_BOOL, label=kinds.LABEL_OPTIONAL)
    nested.field.add(name="path", number=2, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    message = file.message_type.add(name=name)
    for field, (number, kind) in fields.items():
        message.field.add(
            name=field, number=number, type=kinds.TYPE_MESSAGE, type_name=kind, label=kinds.LABEL_OPTIONAL
        )
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


INT64 = ".google.protobuf.Int64Value"
BATCHING = {
    "max_batch_size": (1, INT64),
    "batch_timeout_micros": (2, INT64),
    "max_enqueued_batches": (3, INT64),
    "num_batch_threads": (4, INT64),
}


def test_configuration_files_parse_as_the_server_parses_them():
    config = text_format.Parse((SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("digits", "/models/digits", "tensorflow")
    batching = text_format.Parse((SERVING / "batching.config").read_text(), messages("BatchingParameters", BATCHING)())
    assert batching.max_batch_size.value == 4 and batching.num_batch_threads.value >= 1
    monitoring = messages("MonitoringConfig", {"prometheus_config": (1, ".tensorflow.serving.PrometheusConfig")})
    parsed = text_format.Parse((SERVING / "monitoring.config").read_text(), monitoring())
    assert parsed.prometheus_config.enable


def test_containers_mount_what_the_configuration_names():
    import yaml

    compose = yaml.safe_load((SERVING / "docker-compose.yml").read_text())["services"]["serving"]
    mounted = {v.split(":")[1] for v in compose["volumes"]}
    wanted = {flag.split("=")[1] for flag in compose["command"] if "_file=" in flag}
    assert wanted <= mounted and "/models" in mounted
    assert all((SERVING / v.split(":")[0]).name in {p.name for p in SERVING.iterdir()} for v in compose["volumes"][1:])
    documents = list(yaml.safe_load_all((SERVING / "kubernetes.yaml").read_text()))
    assert [d["kind"] for d in documents] == ["Deployment", "Service", "HorizontalPodAutoscaler"]
    pod = documents[0]["spec"]["template"]["spec"]["containers"][0]
    assert pod["image"] == compose["image"] and pod["readinessProbe"]["httpGet"]["path"] == "/v1/models/digits"
    assert documents[2]["spec"]["metrics"][0]["type"] == "Pods"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    smoothed = make_export(folder / "digits" / "1")
    server = Server(folder)
    yield server, smoothed, folder
    server.stop()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    images = grid_images(np.random.default_rng(1), 3, SIZE)
    for i, image in enumerate(images):
        data = tf.io.encode_png(tf.cast(np.round(image * 255), tf.uint8)).numpy()
        (folder / f"{i}.png").write_bytes(data)
    return [folder / f"{i}.png" for i in range(3)], images


NUMBERS = {"n0": 20, "n": 400, "alpha": 0.001, "seed": 7}


def test_rest_grpc_and_python_agree_bit_for_bit(served, files):
    server, smoothed, _ = served
    paths, images = files
    flags = ["--signature", "certify", "--n0", 20, "--n", 400, "--seed", 7, "--json"]
    by_rest = server.client(*paths, *flags)
    by_grpc = server.client(*paths, *flags, "--grpc", f"127.0.0.1:{server.grpc}")
    assert by_rest.returncode == 0 and by_grpc.returncode == 0, by_rest.stderr + by_grpc.stderr
    rest, remote = ([json.loads(line) for line in done.stdout.splitlines()] for done in (by_rest, by_grpc))
    assert rest == remote
    for image, answer in zip(images, rest, strict=True):
        one = smoothed.certify(image[None], 20, 400, 0.001, 7, indices=[0])
        assert answer["class_id"] == one.label[0] and answer["p_lower"] == one.p_lower[0]
        assert np.float32(one.radius[0]) - 1e-6 < answer["radius"] <= one.radius[0]


def test_client_prints_a_table_of_every_signature(served, files):
    server, _, _ = served
    paths, _ = files
    done = server.client(*paths)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image", "label", "radius", "p_lower", "samples"] and len(lines) == 4
    assert all(line.split()[-1] == "320" for line in lines[1:])
    for signature, column in (("certify_at", "certified"), ("predict", "votes"), ("moments", "propagated_radius")):
        done = server.client(paths[0], "--signature", signature)
        assert done.returncode == 0 and column in done.stdout.splitlines()[0], done.stderr
    assert "logits" in server.client(paths[0], "--signature", "logits").stdout


GOOD = np.full((1, SIZE, SIZE, 1), 0.2, np.float32)
BAD = {
    "wrong shape": (np.zeros((1, 5, 5, 1)), {}, 400, "must have shape"),
    "nan": (np.full_like(GOOD, math.nan), {}, 400, "images must be finite"),
    "too large": (GOOD * 10, {}, 400, "images must lie in [0, 1]"),
    "n over the limit": (GOOD, {**NUMBERS, "n": LIMIT + 1}, 400, f"n must lie in [1, {LIMIT}]"),
    "n as text": (GOOD, {**NUMBERS, "n": "many"}, 400, "input 'n' is not a int64 array"),
    "a key too many": (GOOD, {**NUMBERS, "magic": 1}, 400, "input keys"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_the_right_status(served, case):
    images, values, status, message = BAD[case]
    got, body = served[0].predict(images, **values)
    assert got == status and message in body["error"] and list(body) == ["error"], body
    assert "node" not in body["error"] and "Traceback" not in body["error"]


@pytest.mark.parametrize(
    "path, body, status, message",
    [
        ("/v1/models/nothing:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(nothing)"),
        ("/v1/models/digits/versions/9:predict", {"instances": [1]}, 404, "Specific(digits, 9)"),
        ("/v1/models/digits/versions/x:predict", {"instances": [1]}, 400, "version must be a whole number"),
        ("/v1/models/digits:predict", b'{"instances": [', 400, "JSON Parse error"),
        ("/v1/models/digits:predict", b"[" * 100_000, 400, "JSON Parse error"),
        ("/v1/models/digits:predict", {}, 400, "must have either 'instances' or 'inputs'"),
        ("/v1/models/digits:predict", {"instances": []}, 400, "must be a list that is not empty"),
        ("/v1/models/digits:predict", {"instances": [1], "signature_name": "magic"}, 400, "Serving signature name"),
        ("/v1/models/digits:predict", {"instances": [{"b64": "?"}]}, 400, 'must be {"b64": BASE64}'),
        ("/v1/models/digits:predict", b"x" * (50 * 2**20), 413, "Request Entity Too Large"),
    ],
)
def test_malformed_requests_get_the_right_status(served, path, body, status, message):
    got, answer = served[0].request("POST", path, body)
    assert got == status and message in answer["error"], answer


def test_both_formats_and_the_other_paths(served):
    server, _, _ = served
    rows = server.predict(GOOD)[1]["predictions"]
    columns = server.request("POST", "/v1/models/digits:predict", {"inputs": {"images": GOOD.tolist()}})[1]["outputs"]
    assert rows == [{k: v[0] for k, v in columns.items()}]
    short = {"instances": GOOD.tolist(), "signature_name": "logits"}
    assert np.shape(server.request("POST", "/v1/models/digits:predict", short)[1]["predictions"]) == (1, 10)
    status = server.request("GET", "/v1/models/digits")[1]["model_version_status"]
    assert status[-1] == {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert "serving_default" in json.dumps(server.request("GET", "/v1/models/digits/metadata")[1])
    assert server.request("GET", "/nothing")[0] == 404


def test_grpc_errors_have_their_codes(served):
    server, _, _ = served
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for name, images, code in (
            ("nothing", GOOD, grpc.StatusCode.NOT_FOUND),
            ("digits", GOOD * 10, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
            with pytest.raises(grpc.RpcError) as error:
                stub.Predict(request, timeout=30)
            assert error.value.code() == code


def test_client_reports_errors_and_retries_only_what_is_unavailable(served, files, tmp_path):
    server, _, _ = served
    paths, _ = files
    refused = server.client(paths[0], "--signature", "certify", "--n", LIMIT + 1)
    assert refused.returncode == 1 and f"n must lie in [1, {LIMIT}]" in refused.stderr and not refused.stdout
    (tmp_path / "no.png").write_bytes(b"no image")
    assert server.client(tmp_path / "no.png").returncode == 1
    missing = server.client(tmp_path / "missing.png")
    assert missing.returncode == 1 and "No such file" in missing.stderr and "Traceback" not in missing.stderr
    for where in (["--url", f"http://127.0.0.1:{free_port()}"], ["--grpc", f"127.0.0.1:{free_port()}"]):
        command = [sys.executable, str(SERVING / "client.py"), str(paths[0]), "--model", "m", "--retries", "1", *where]
        gone = forked.run(command, capture_output=True, text=True, timeout=60)
        assert gone.returncode == 1 and gone.stderr.startswith("error: "), gone.stderr


def test_sixty_four_clients_for_a_bounded_time(served):
    """Every answer right, and the memory flat after the first seconds."""
    server, _, _ = served
    expected = server.predict(GOOD)[1]
    process, end, count = psutil.Process(server.process.pid), time.monotonic() + 12, 0

    def one(_):
        answers = 0
        while time.monotonic() < end:
            status, body = server.predict(GOOD)
            assert status == 200 and body == expected
            answers += 1
        return answers

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        pending = [pool.submit(one, i) for i in range(64)]
        time.sleep(5)
        early = process.memory_info().rss
        count = sum(p.result() for p in pending)
    assert count >= 64 and process.memory_info().rss < early + 100 * 2**20


def test_a_new_version_is_served_beside_the_old(served):
    server, _, folder = served
    make_export(folder / "digits" / "2", seed=5)
    newest = lambda: server.request("GET", "/v1/models/digits")[1]["model_version_status"][0]["version"]  # noqa: E731
    wait_for(lambda: newest() == "2")
    old, new = (server.predict(GOOD, version=v, **NUMBERS)[1] for v in ("/versions/1", "/versions/2"))
    assert server.predict(GOOD, **NUMBERS)[1] == new != old


def test_sigterm_finishes_requests_in_flight(tmp_path):
    make_export(tmp_path / "digits" / "1")
    server = Server(tmp_path)
    server.predict(GOOD, **NUMBERS)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.predict, np.repeat(GOOD, 20, 0), **{**NUMBERS, "n": LIMIT})
        time.sleep(0.5)
        assert not long.done()
        server.process.send_signal(signal.SIGTERM)
        status, body = long.result()
    assert status == 200 and len(body["predictions"]) == 20
    assert server.process.wait(60) == 0
    server.stop()
    with pytest.raises(ConnectionError):
        server.predict(GOOD)


def test_an_empty_folder_is_refused(tmp_path):
    done = forked.run(
        [sys.executable, str(SERVING / "local.py"), str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "holds no NAME/VERSION" in done.stderr


BROWSER = os.environ.get("COVKERAS_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no browser on this machine")
def test_the_page_certifies_in_a_browser(served, tmp_path):
    server, _, _ = served
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
    ]
    flags += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    page = f"http://127.0.0.1:{server.rest}/#example"
    done = subprocess.run([BROWSER, *flags, "--dump-dom", page], capture_output=True, text=True, timeout=120)
    answer = done.stdout.split('id="answer"')[1].split("</div></div>")[0]
    assert "certified radius" in answer or "abstains" in answer, answer
    assert "digits, none, sigma 0.25, 1 test images, ACR 0.500" in done.stdout


def test_export_program_exports_a_finished_run_only(tmp_path):
    command = [sys.executable, str(SERVING / "export.py"), "--run", str(tmp_path), "--out", str(tmp_path / "m" / "1")]
    done = forked.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "is no finished run" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "m").exists()
