"""The application of the live tests: quick to boot, and able to misbehave in every way that a release can.

What it does wrong stands in knobs.json, so in the image and thus in the commit; the environment's KNOB_<NAME> wins.
Paths: / shows the commit, /health answers the wanted status, /slow?seconds=S answers late, /environment/<NAME> says the
SHA-256 of a variable and /file/<path> of a file (never the value: secrets are tested by it), /pid says when it began,
/headers what the request's headers were.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

KNOBS = json.loads(Path(__file__).with_name("knobs.json").read_text())
STARTED = time.time()
asked = {"/": 0, "/health": 0}


def knob(name: str, default: str) -> str:
    """Give the environment's value, else the image's."""
    return os.environ.get(f"KNOB_{name.upper()}", str(KNOBS.get(name, default)))


def digest(data: bytes) -> str:
    """Say what a secret is without saying it."""
    return hashlib.sha256(data).hexdigest()


def health() -> int:
    """Give the status of /health; with ``sick_after`` requests served it is 500, with ``flaps`` every other time."""
    if asked["/"] >= int(knob("sick_after", "1000000000")) or (knob("flaps", "") and asked["/health"] % 2):
        return 500
    return int(knob("health_status", "200"))


class Handler(BaseHTTPRequestHandler):
    """Answers every path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        url = urlsplit(self.path)
        status, body = 200, ""
        if url.path in asked:
            asked[url.path] += 1
        if url.path == "/":
            body = f"commit {os.environ.get('ESTEIRA_COMMIT', 'unknown')} text {knob('text', 'hello')}"
        elif url.path == "/health":
            status = health()
            body = "well" if status == 200 else "unwell"
        elif url.path == "/slow":
            time.sleep(float(parse_qs(url.query)["seconds"][0]))
            body = "late"
        elif url.path.startswith("/environment/"):
            body = digest(os.environ.get(url.path.rpartition("/")[2], "").encode())
        elif url.path.startswith("/file/"):
            path = Path(url.path.removeprefix("/file"))
            body = digest(path.read_bytes()) if path.exists() else "none"
        elif url.path == "/headers":
            body = json.dumps({name.lower(): value for name, value in self.headers.items()})
        elif url.path == "/pid":
            body = f"{os.getpid()} {STARTED}"
        else:
            status, body = 404, "nothing here"
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing for each request."""


def end(*_: object) -> None:
    """End, a while later if so told: until then it answers, as what shuts down gracefully does."""
    if (last := float(knob("stop_delay", "0"))) == 0:
        os._exit(0)
    threading.Timer(last, os._exit, (0,)).start()


def main() -> None:
    """Misbehave as the knobs say, then serve."""
    for number in range(int(knob("log_lines", "0"))):
        print(f"log line {number} of {knob('text', 'hello')}", flush=True)
    if knob("ignore_sigterm", "") == "":
        signal.signal(signal.SIGTERM, end)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Not what is sent when nothing is said: whoever sends it has read the image's stop signal.
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(10))
    time.sleep(float(knob("boot_delay", "0")))
    if knob("eat_memory", "") != "":
        eaten = bytearray(int(knob("eat_memory", "0")) * 1024 * 1024)
        eaten[::4096] = b"x" * len(eaten[::4096])
    if knob("exit_with", "") != "":
        print(f"cannot start: {knob('text', 'hello')}", file=sys.stderr, flush=True)
        sys.exit(int(knob("exit_with", "1")))
    server = ThreadingHTTPServer((knob("listen", "0.0.0.0"), int(knob("port", "8000"))), Handler)  # noqa: S104
    print("serving", flush=True)
    server.serve_forever()


main()
