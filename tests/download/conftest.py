"""A server of every kind, and stand-ins for the published archives."""

import hashlib
import socket
import struct
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from segbench.download import sources, transfer


@dataclass
class Site:
    """What the server gives out, how it misbehaves, and what it was asked and has sent."""

    body: bytes = b""
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    length: bool = True
    cuts: list[int] = field(default_factory=list)  # for each request in turn, after how many bytes it breaks off
    resets: int = 0  # so many requests end in a reset instead of an orderly end
    silent: threading.Event | None = None  # what the first request waits for in the middle
    status: int = 200
    asked: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    url: str = ""


def handler(site):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append(dict(self.headers))
            start, status = 0, site.status
            known = self.headers.get("If-Range") in (None, site.etag, site.modified)
            if site.ranges and known and "Range" in self.headers:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                status = 206 if start < len(site.body) else 416
            part = site.body[start:] if status < 300 else b""
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(site.body) - 1}/{len(site.body)}")
            elif status == 416:
                self.send_header("Content-Range", f"bytes */{len(site.body)}")
            for name, value in (("ETag", site.etag), ("Last-Modified", site.modified)):
                if value:
                    self.send_header(name, value)
            if site.length:
                self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            part = part[: site.cuts.pop(0)] if site.cuts else part
            if site.silent and len(site.asked) == 1:
                part = part[:30_000]
            site.sent += len(part)  # before the client can have it all
            self.wfile.write(part)
            if site.silent and len(site.asked) == 1:
                site.silent.wait(60)
            if site.resets:
                site.resets -= 1
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def site():
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(site))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}/archive"
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(transfer, "BACKOFF_S", (0.0, 0.0, 0.0))


@pytest.fixture
def serve(site, monkeypatch):
    """Let the server give out a stand-in for a source, with the lists and the checksum that it has."""

    def serve(name, body, **changes):
        lists = {
            "voc": {f"ImageSets/Segmentation/{s}.txt": n for s, n in (("train", 2), ("val", 1), ("trainval", 3))},
            "sbd": {"dataset/train.txt": 1, "dataset/val.txt": 1},
            "camvid": dict.fromkeys(("train.txt", "val.txt", "test.txt"), 2),
        }[name]
        site.body = body
        right = {"md5": hashlib.md5(body).hexdigest()} if name != "camvid" else {"git_tree": ""}
        source = replace(sources.SOURCES[name], **{"url": site.url, "lists": lists} | right | changes)
        monkeypatch.setitem(sources.SOURCES, name, source)
        return body

    return serve
