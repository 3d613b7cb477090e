"""Server of the interoperability cases of gRPC, with health and reflection: grpc_server.py PORT...

Its methods have no code from protoc: messages are plain bytes, and what a request asks for stands in its metadata.
"""

import signal
import sys
import threading
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

SERVICE = "weir.test.Calls"


def unary(request, context):
    asked = dict(context.invocation_metadata())
    for name in ("x-echo-initial", "x-echo-initial-bin"):
        if name in asked:
            context.send_initial_metadata(((name, asked[name]),))
    context.set_trailing_metadata(tuple((n, v) for n, v in asked.items() if n.startswith("x-echo-trailing")))
    if "x-status" in asked:
        # Text beyond ASCII travels as bytes: a header of its own could not hold it.
        context.set_code(next(c for c in grpc.StatusCode if c.value[0] == int(asked["x-status"])))
        context.set_details(asked.get("x-message-bin", b"").decode())
        return b""
    if "x-sleep" in asked:
        time.sleep(float(asked["x-sleep"]))
    return b"r" * int(asked.get("x-size", len(request)))


def server_streaming(request, context):
    asked = dict(context.invocation_metadata())
    for size in filter(None, asked.get("x-sizes", "").split(",")):
        yield b"s" * int(size)


def client_streaming(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def both_streaming(requests, context):
    for request in requests:
        yield request


def main():
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=32),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                SERVICE,
                {
                    "Unary": grpc.unary_unary_rpc_method_handler(unary),
                    "ServerStreaming": grpc.unary_stream_rpc_method_handler(server_streaming),
                    "ClientStreaming": grpc.stream_unary_rpc_method_handler(client_streaming),
                    "BothStreaming": grpc.stream_stream_rpc_method_handler(both_streaming),
                },
            ),
        )
    )
    healthy = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    for port in sys.argv[1:]:
        server.add_insecure_port(f"0.0.0.0:{port}")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    server.start()
    print("serving", flush=True)
    ended.wait()
    server.stop(10).wait()


main()
