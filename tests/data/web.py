"""A web server on this machine whose mirrors behave well and badly."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BEHAVIOURS = (
    "ranges",  # continues where it is asked to
    "whole",  # ignores ranges
    "cut",  # continues, and cuts each connection after 1000 bytes
    "stuck",  # breaks off before the first byte
    "slow",  # as ranges, in blocks with pauses
    "silent",  # answers and then sends nothing
    "corrupt",  # as ranges, with one byte wrong
    "longer",  # has another file
    "beside",  # answers with another part than asked for
    "missing",  # 404
)


@dataclass
class Web:
    """What is served, and what was asked for.

    Attributes:
        contents: bytes by path.
        port: on the loopback interface.
        asked: behaviour, path and Range header of every request, in order.
    """

    contents: dict[str, bytes]
    port: int = 0
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def mirror(self, behaviour: str) -> str:
        assert behaviour in BEHAVIOURS
        return f"http://127.0.0.1:{self.port}/{behaviour}"

    @property
    def behaviours_asked(self) -> list[str]:
        return [behaviour for behaviour, _, _ in self.asked]


@contextmanager
def serving(contents: dict[str, bytes]) -> Iterator[Web]:
    """Serve ``contents`` until the block ends."""
    web = Web(contents)
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            _, behaviour, path = self.path.split("/", 2)
            asked = self.headers.get("Range")
            web.asked.append((behaviour, path, asked))
            if behaviour == "missing" or path not in web.contents:
                self.send_error(404)
                return
            content = web.contents[path]
            if behaviour == "corrupt":
                content = content[:-1] + bytes([content[-1] ^ 1])
            if behaviour == "longer":
                content += b"more"
            self.answer(behaviour, content, asked)

        def answer(self, behaviour: str, content: bytes, asked: str | None) -> None:
            start = int(re.findall(r"\d+", asked)[0]) if asked else 0
            if behaviour == "whole" or not asked:
                start = 0
                self.send_response(200)
            elif start >= len(content):
                self.send_error(416)
                return
            else:
                shown = start - 1 if behaviour == "beside" else start
                self.send_response(206)
                self.send_header(
                    "Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}"
                )
            body = content[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if behaviour == "silent":
                over.wait(10)
            elif behaviour == "slow":
                for first in range(0, len(body), max(1, len(body) // 8)):
                    self.wfile.write(body[first : first + max(1, len(body) // 8)])
                    time.sleep(0.05)
            elif behaviour == "cut":
                self.wfile.write(body[:1000])
            elif behaviour != "stuck":
                self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that hangs up is part of the tests

    with Server(("127.0.0.1", 0), Handler) as server:
        web.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield web
        finally:
            over.set()
            server.shutdown()
            thread.join()
