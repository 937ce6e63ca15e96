"""An OpenAI-compatible server that answers as a test says, faults included, over real HTTP."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENDLESS = object()  # an answer that goes on for ever


@dataclass
class Reply:
    """What the server sends; `body` is bytes, or something to be sent as JSON, or ENDLESS."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def completion(text: str | None, ended: str = "stop", **more: Any) -> Reply:
    """A chat completion in the form of the API."""
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    usage = more.pop("usage", {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120})
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "fake",
        "choices": [{"index": 0, "message": message, "finish_reason": ended}],
        **({"usage": usage} if usage else {}),
    }
    return Reply(body)


def rows(*pairs: tuple[str, str]) -> Reply:
    """A completion that holds rows as it should."""
    return completion(json.dumps({"rows": [{"prompt": p, "completion": c} for p, c in pairs]}))


@dataclass
class FakeLLM:
    """The address of the server, and what it was asked: bodies with the time of each.

    `listed` are the keys with which the list of models was asked for.
    """

    address: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)

    def words(self) -> list[str]:
        """The words of every request, in the order in which they came."""
        return [body["messages"][0]["content"] for body in self.asked]


MODELS = Reply({"object": "list", "data": [{"id": "fake", "object": "model", "created": 0}]})


@contextmanager
def fake_llm(
    reply: Callable[[int, dict[str, Any]], Reply], models: Reply = MODELS
) -> Iterator[FakeLLM]:
    """Serve on loopback; `reply` gets each request's number, from 0 on, and its body."""
    lock, stopped = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body |= {"at": time.monotonic(), "key": self.headers["Authorization"]}
            with lock:
                number = len(served.asked)
                served.asked.append(body)
            self.say(reply(number, body))

        def do_GET(self):
            assert self.path == "/v1/models"
            served.listed.append(self.headers["Authorization"])
            self.say(models)

        def say(self, said: Reply):
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            if said.body is not ENDLESS:
                content = said.body if isinstance(said.body, bytes) else json.dumps(said.body)
                content = content.encode() if isinstance(content, str) else content
                if "Content-Length" not in said.headers:  # a test may promise more than it gives
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return
            self.end_headers()
            try:
                while not stopped.is_set():
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.01)
            except OSError:
                pass  # the client has had enough

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = FakeLLM(f"http://127.0.0.1:{server.server_port}/v1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
