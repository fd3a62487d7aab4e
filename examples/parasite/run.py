"""Entry point of the parasite service: `gunicorn run:app`, or `python3 run.py` to try it without a container."""

from app import create_app

app = create_app()

if __name__ == "__main__":
    app.run(host="127.0.0.1", port=8000)
