"""The parasite service: one page that tells which commit it is."""

import os
import socket

from flask import Flask, Response, jsonify, render_template

from app.health import is_healthy


def create_app() -> Flask:
    """Make the application. The deployment tells it its commit in ESTEIRA_COMMIT; the image does not know it."""
    app = Flask(__name__)
    release = {"commit": os.environ.get("ESTEIRA_COMMIT", "unknown"), "host": socket.gethostname()}

    @app.get("/")
    def page() -> str:
        return render_template("index.html", **release)

    @app.get("/version")
    def version() -> Response:
        return jsonify(release)

    @app.get("/health")
    def health() -> tuple[Response, int]:
        healthy = is_healthy()
        return jsonify(status="ok" if healthy else "failing", **release), 200 if healthy else 503

    return app
