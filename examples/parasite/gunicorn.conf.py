"""How gunicorn serves the parasite service in its container."""

bind = "0.0.0.0:8000"
workers = 1
threads = 16
# Requests in flight at SIGTERM are finished; well within the 10 s that Docker waits before it kills.
graceful_timeout = 8
# gunicorn's heartbeat file belongs in memory: on a busy disk a blocked write looks like a hung worker.
worker_tmp_dir = "/dev/shm"  # noqa: S108
# Idle keep-alive connections must not hold up a stop.
keepalive = 2
control_socket_disable = True
accesslog = None
