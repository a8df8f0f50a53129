"""Serves exported models over TF-Serving's REST paths and gRPC service, for development and tests. Not for production.

    python serving/local.py exports            exports/NAME/VERSION, the latest version of each model, and new ones
                                               as they appear

A page to draw or choose an image is at the REST port's root. Ctrl-C or SIGTERM finishes the requests in flight.
"""

import argparse
import asyncio
import concurrent.futures
import signal
import sys
from pathlib import Path

from covkeras import startup

startup.quiet_tensorflow()

import grpc  # noqa: E402
from aiohttp import web  # noqa: E402
from local_grpc import Prediction, Status  # noqa: E402
from local_models import Models  # noqa: E402
from local_rest import MAX_BODY, Rest  # noqa: E402
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc  # noqa: E402


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
