"""Serves exported models over TF-Serving's REST paths and gRPC service, for development and tests. Not for production.

    covkeras serve exports

exports/NAME/VERSION: all versions, the latest being the default; as they appear, are replaced, and go.

A page to draw or choose an image is at the REST port's root. Ctrl-C or SIGTERM finishes the requests in flight.
"""

import argparse
import asyncio
import concurrent.futures
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


def check_free(host: str, port: int, flag: str) -> None:
    """Refuses a port that is taken, before anything is loaded. Raises OSError."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"{host}:{port} can't be listened on ({reason}): choose another {flag}") from None


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
        check_free(flags.host, flags.rest_port, "--rest-port")
        check_free(flags.host, flags.grpc_port, "--grpc-port")
    except OSError as error:
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
