"""Runs the stand-in until it is stopped: ``python -m rehearsal.gitlab --port 8929 --project group/parasite``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from rehearsal.gitlab.faults import Fault, RateLimit
from rehearsal.gitlab.server import DESCRIPTION, DESCRIPTION_MISSING, Exchange, StandIn


def main() -> int:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m rehearsal.gitlab", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument(
        "--port", type=int, default=8929, help="on loopback; 0 takes a free one (default 8929)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--project", action="append", default=[], metavar="GROUP/NAME", help="a project to make"
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="JSON that keeps everything, secrets included"
    )
    parser.add_argument(
        "--registry", metavar="URL", help="a real registry, whose tags are listed and deleted"
    )
    parser.add_argument("--registry-user", help="the password comes from the environment's REGISTRY_PASSWORD")
    parser.add_argument(
        "--htpasswd", type=Path, metavar="FILE", help="the registry's, to keep deploy tokens valid in"
    )
    parser.add_argument(
        "--rate-limit", metavar="N/SECONDS", help="so many requests of a token in so many seconds"
    )
    parser.add_argument(
        "--latency", type=float, default=0, metavar="SECONDS", help="what every answer takes more"
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NTH:WHAT",
        help="e.g. 3:503 5+2:429:1 7:timeout:10 9:reset!",
    )
    parser.add_argument(
        "--token-lives", type=int, metavar="N", help="make a token that expires after N requests"
    )
    parser.add_argument("--quiet", action="store_true", help="do not print the requests")
    options = parser.parse_args()

    try:
        faults = [Fault.parse(text) for text in options.fault]
        limit = None
        if options.rate_limit:
            number, _, period = options.rate_limit.partition("/")
            limit = RateLimit(int(number), int(period or 60))
        standin = StandIn(
            port=options.port,
            host=options.host,
            state_file=options.state,
            registry=options.registry,
            registry_user=options.registry_user,
            registry_password=os.environ.get("REGISTRY_PASSWORD"),
            htpasswd=options.htpasswd,
            rate_limit=limit,
            latency=options.latency,
            on_exchange=None if options.quiet else _print,
        )
        for path in options.project:
            standin.project(path)
    except (ValueError, OSError) as problem:
        parser.error(str(problem))
    for fault in faults:
        standin.faults.order(fault)
    if not any(token.name == "reader" for token in standin.state.tokens):
        standin.new_token("reader", ["read_api"])

    with_description = f"not checked: {DESCRIPTION_MISSING}"
    if not standin.description_missing:
        with_description = f"checked against GitLab's published description ({DESCRIPTION})"
    print(f"GITLAB_BASE_URL={standin.base_url}")
    print(f"GITLAB_TOKEN={standin.token}")
    print(f"# read_api only: {next(one.secret for one in standin.state.tokens if one.name == 'reader')}")
    if options.token_lives is not None:
        short = standin.new_token("short-lived", lives=options.token_lives)
        print(f"# expires after {options.token_lives} requests: {short}")
    for project in standin.state.projects:
        print(f"# project {project.id}: {project.path}")
    print(f"# requests and answers are {with_description}", flush=True)

    stop = threading.Event()
    for number_of_signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number_of_signal, lambda *_: stop.set())
    standin.start()
    stop.wait()
    standin.close()
    for objection in dict.fromkeys(standin.objections):
        print(f"The description objects: {objection}", file=sys.stderr)
    return 1 if standin.objections else 0


def _print(exchange: Exchange) -> None:
    print(
        f"{exchange.method} {exchange.path} {exchange.status or 'no answer'} {exchange.seconds:.3f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
