"""serving/local.py in a process of its own, and an export for it: shared by the tests of the deployment kit."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked
import keras

from covkeras import SmoothedClassifier, models
from covkeras.exporting import Defaults, export

SERVING = Path(__file__).parent.parent / "serving"
SIZE = 8
LIMIT = 20_000


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def free_port() -> int:
    return free_ports(1)[0]


class Server:
    """serving/local.py in a process of its own."""

    def __init__(self, exports: Path):
        self.rest, self.grpc = free_port(), free_port()
        ports = ["--rest-port", str(self.rest), "--grpc-port", str(self.grpc), "--poll", "0.3"]
        command = [sys.executable, str(SERVING / "local.py"), str(exports), *ports]
        self.process = forked.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()
        wait_for(lambda: any(line.startswith("REST") for line in self.lines) or self.process.poll() is not None)
        assert self.process.poll() is None, self.lines

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()

    def request(self, method: str, path: str, body=None, timeout: float = 60):
        connection = http.client.HTTPConnection("127.0.0.1", self.rest, timeout=timeout)
        try:
            text = body if isinstance(body, (bytes, str)) or body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def predict(self, images, model="digits", version="", **values):
        rows = [{"images": i.tolist(), **values} for i in images]
        body = {"instances": rows, "signature_name": "certify" if values else "serving_default"}
        return self.request("POST", f"/v1/models/{model}{version}:predict", body)

    def client(self, *arguments):
        where = ["--url", f"http://127.0.0.1:{self.rest}", "--model", "digits"]
        command = [sys.executable, str(SERVING / "client.py"), *map(str, arguments), *where]
        return forked.run(command, capture_output=True, text=True, timeout=120)


def wait_for(condition, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def make_export(path: Path, seed: int = 0) -> SmoothedClassifier:
    keras.utils.set_random_seed(seed)
    smoothed = SmoothedClassifier(models.lenet((SIZE, SIZE, 1)), 0.25, batch_size=128)
    defaults = Defaults(n0=20, n=300, n_predict=100, max_samples=LIMIT)
    accuracy = {"radii": [0.0, 0.5], "accuracy": [1.0, 0.5]}
    about = {"data": "digits", "method": "none", "test_images": 1, "acr": 0.5, "certified_accuracy": accuracy}
    export(smoothed, path, list("abcdefghij"), defaults, about, key=(1, 2))
    return smoothed
