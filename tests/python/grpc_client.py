"""Client of the interoperability cases of gRPC: grpc_client.py ADDRESS. Says "ok NAME" or "failed NAME WHY" of each."""

import queue
import sys
import traceback

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE = "/weir.test.Calls/"
# Longer than any case takes on a busy machine.
PATIENCE = 60
SIZES = (31415, 9, 2653, 58979)

channel = grpc.insecure_channel(
    sys.argv[1],
    options=[
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        # What fails must be seen: the client sends nothing again by itself.
        ("grpc.enable_retries", 0),
    ],
)
unary = channel.unary_unary(SERVICE + "Unary")
server_stream = channel.unary_stream(SERVICE + "ServerStreaming")
client_stream = channel.stream_unary(SERVICE + "ClientStreaming")
both_stream = channel.stream_stream(SERVICE + "BothStreaming")


def same(left, right):
    assert left == right, f"{left!r:.200} is not {right!r:.200}"


def fails(call, code):
    try:
        call()
    except grpc.RpcError as error:
        same(error.code(), code)
        return error
    raise AssertionError("it did not fail")


class Requests:
    """Messages of a call that are handed in while it is under way."""

    def __init__(self):
        self.queue = queue.Queue()

    def __iter__(self):
        return iter(self.queue.get, None)

    def send(self, message):
        self.queue.put(message)

    def end(self):
        self.queue.put(None)


def empty_unary():
    same(unary(b"", timeout=PATIENCE), b"")


def large_unary():
    same(unary(b"q" * 271828, timeout=PATIENCE, metadata=(("x-size", "314159"),)), b"r" * 314159)


def huge_unary():
    same(unary(b"q" * (16 << 20), timeout=PATIENCE, metadata=(("x-size", str(16 << 20)),)), b"r" * (16 << 20))


def client_streaming():
    same(client_stream(iter(b"c" * size for size in (27182, 8, 1828, 45904)), timeout=PATIENCE), b"74922")


def server_streaming():
    sizes = ",".join(map(str, SIZES))
    answers = server_stream(b"", timeout=PATIENCE, metadata=(("x-sizes", sizes),))
    same([len(answer) for answer in answers], list(SIZES))


def ping_pong():
    requests = Requests()
    answers = both_stream(iter(requests), timeout=PATIENCE)
    for size in SIZES:
        requests.send(b"p" * size)
        same(next(answers), b"p" * size)
    requests.end()
    same(list(answers), [])
    same(answers.code(), grpc.StatusCode.OK)


def empty_stream():
    same(list(both_stream(iter(()), timeout=PATIENCE)), [])


def cancel_after_begin():
    requests = Requests()
    call = client_stream.future(iter(requests), timeout=PATIENCE)
    call.cancel()
    requests.end()
    same(call.code(), grpc.StatusCode.CANCELLED)


def cancel_after_first_response():
    requests = Requests()
    call = both_stream(iter(requests), timeout=PATIENCE)
    requests.send(b"p" * 27182)
    same(len(next(call)), 27182)
    call.cancel()
    requests.end()
    same(call.code(), grpc.StatusCode.CANCELLED)


def timeout_on_sleeping_server():
    requests = Requests()
    call = both_stream(iter(requests), timeout=0.3)
    requests.send(b"p" * 27182)
    # The answer may come before the deadline; the end does not.
    fails(lambda: list(call), grpc.StatusCode.DEADLINE_EXCEEDED)
    requests.end()
    slow = (("x-sleep", "2"),)
    fails(lambda: unary(b"", timeout=0.3, metadata=slow), grpc.StatusCode.DEADLINE_EXCEEDED)


def custom_metadata():
    raw = bytes(range(256)) + b"\xab\xab\xab"
    sent = (
        ("x-echo-initial", "test_initial_metadata_value"),
        ("x-echo-trailing", "test_trailing_metadata_value"),
        ("x-echo-trailing-bin", raw),
    )
    _, call = unary.with_call(b"", timeout=PATIENCE, metadata=sent)
    same(dict(call.initial_metadata())["x-echo-initial"], "test_initial_metadata_value")
    same(dict(call.trailing_metadata())["x-echo-trailing"], "test_trailing_metadata_value")
    same(dict(call.trailing_metadata())["x-echo-trailing-bin"], raw)
    _, call = unary.with_call(b"", timeout=PATIENCE, metadata=(("x-echo-initial-bin", raw),))
    same(dict(call.initial_metadata())["x-echo-initial-bin"], raw)


def status(number, message):
    asked = (("x-status", str(number)), ("x-message-bin", message.encode()))
    codes = {code.value[0]: code for code in grpc.StatusCode}
    error = fails(lambda: unary(b"", timeout=PATIENCE, metadata=asked), codes[number])
    same(error.details(), message)


def status_code_and_message():
    for number in range(1, 17):
        status(number, "test status message")


def special_status_message():
    status(2, "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n")


def unimplemented_method():
    missing = channel.unary_unary(SERVICE + "Missing")
    fails(lambda: missing(b"", timeout=PATIENCE), grpc.StatusCode.UNIMPLEMENTED)


def unimplemented_service():
    missing = channel.unary_unary("/weir.test.Missing/Unary")
    fails(lambda: missing(b"", timeout=PATIENCE), grpc.StatusCode.UNIMPLEMENTED)


def health():
    stub = health_pb2_grpc.HealthStub(channel)
    asked = health_pb2.HealthCheckRequest(service="weir.test.Calls")
    same(stub.Check(asked, timeout=PATIENCE).status, health_pb2.HealthCheckResponse.SERVING)
    watch = stub.Watch(asked, timeout=PATIENCE)
    same(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
    watch.cancel()


def many_at_once():
    calls = [unary.future(b"m" * number, timeout=PATIENCE) for number in range(300)]
    same([len(call.result()) for call in calls], list(range(300)))


CASES = (
    empty_unary,
    large_unary,
    huge_unary,
    client_streaming,
    server_streaming,
    ping_pong,
    empty_stream,
    cancel_after_begin,
    cancel_after_first_response,
    timeout_on_sleeping_server,
    custom_metadata,
    status_code_and_message,
    special_status_message,
    unimplemented_method,
    unimplemented_service,
    health,
    many_at_once,
)

wrong = 0
for case in CASES:
    try:
        case()
        print("ok", case.__name__, flush=True)
    except Exception as error:  # the next case is tried, whatever this one met
        wrong += 1
        print("failed", case.__name__, type(error).__name__, error, flush=True)
        traceback.print_exc()
channel.close()
sys.exit(1 if wrong else 0)
