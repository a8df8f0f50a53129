"""Serves exported models over TF-Serving's REST paths and gRPC service, for development and tests. Not for production.

    covkeras serve exports

exports/NAME/VERSION: all versions, the latest being the default; as they appear, are replaced, and go.

A page to draw or choose an image is at the REST port's root. Ctrl-C or SIGTERM finishes the requests in flight.
"""

import argparse
import asyncio
import concurrent.futures
import errno
import signal
import socket
import sys
from pathlib import Path

from covkeras.runtime import startup
from covkeras.runtime.files import user_path
from covkeras.runtime.later import Later

grpc = Later("grpc")
web = Later("aiohttp.web")
serve_grpc = Later("covkeras.commands.serve_grpc")
serve_models = Later("covkeras.commands.serve_models")
serve_rest = Later("covkeras.commands.serve_rest")
model_service = Later("tensorflow_serving.apis.model_service_pb2_grpc")
prediction_service = Later("tensorflow_serving.apis.prediction_service_pb2_grpc")
validation = Later("covkeras.runtime.validation")


def check(flags) -> None:
    """Refuses what can't be served with, and ports that are taken, before anything is loaded.

    Raises:
        ValueError: a number that says nothing. OSError: a host, or a port, that can't be listened on.
    """
    validation.check_count("threads", flags.threads, 1, 1024)
    validation.check_between("poll", flags.poll, 0, 86_400, closed="right")
    validation.check_between("grace", flags.grace, 0, 86_400, closed="both")
    for name in ("rest_port", "grpc_port"):
        validation.check_count(name, getattr(flags, name), 1, 65_535)
    if flags.rest_port == flags.grpc_port:
        raise ValueError(f"rest_port and grpc_port must be different, got {flags.rest_port} for both.")
    try:
        socket.getaddrinfo(flags.host, flags.rest_port)
    except (OSError, UnicodeError) as error:
        raise OSError(f"{flags.host} is no address ({error}): choose another --host") from None
    for port, flag in ((flags.rest_port, "--rest-port"), (flags.grpc_port, "--grpc-port")):
        check_free(flags.host, port, flag)


def check_free(host: str, port: int, flag: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            # An address of another machine's is no port's fault.
            flag = "--host" if error.errno == errno.EADDRNOTAVAIL else flag
            raise OSError(f"{at(host, port)} can't be listened on ({error.strerror}): choose another {flag}") from None


def at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(flags, models) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    pool = concurrent.futures.ThreadPoolExecutor(flags.threads)
    runner = web.AppRunner(serve_rest.Rest(models, pool).app, shutdown_timeout=flags.grace)
    await runner.setup()
    await web.TCPSite(runner, flags.host, flags.rest_port).start()
    # Without the second, two servers would share a port, and each answer half of the requests.
    limit = [("grpc.max_receive_message_length", serve_rest.MAX_BODY), ("grpc.so_reuseport", 0)]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(flags.threads), options=limit)
    prediction_service.add_PredictionServiceServicer_to_server(serve_grpc.Prediction(models), server)
    model_service.add_ModelServiceServicer_to_server(serve_grpc.Status(models), server)
    server.add_insecure_port(at(flags.host, flags.grpc_port))
    server.start()
    print(f"REST http://{at(flags.host, flags.rest_port)}  gRPC {at(flags.host, flags.grpc_port)}", flush=True)
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
    parser.add_argument("exports", type=user_path, help="a folder of models: NAME/VERSION/saved_model.pb")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default: 127.0.0.1)")
    parser.add_argument("--rest-port", type=int, default=8501, help="default: 8501")
    parser.add_argument("--grpc-port", type=int, default=8500, help="default: 8500")
    parser.add_argument("--threads", type=int, default=4, help="requests evaluated at a time (default: 4)")
    parser.add_argument("--poll", type=float, default=2.0, help="seconds between looks for new versions (default: 2)")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds for requests in flight (default: 60)")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    flags = parse(arguments)
    try:
        check(flags)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    startup.quiet_tensorflow()
    models = serve_models.Models(Path(flags.exports))
    if not models.loaded:
        print(
            f"error: {flags.exports} holds no NAME/VERSION/saved_model.pb that loads: covkeras export makes one",
            file=sys.stderr,
        )
        return 2
    try:
        asyncio.run(serve(flags, models))
    except (OSError, RuntimeError) as error:
        # Such as a port that is taken.
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
