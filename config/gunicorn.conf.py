"""Owns how gunicorn runs the web processes. Used by the Procfile: `gunicorn -c config/gunicorn.conf.py …`.

WEB_CONCURRENCY (processes), WEB_THREADS (threads of each) and PORT are read from the environment; `--bind` and
every other option on the command line wins over this file.
"""

from __future__ import annotations

import os
import subprocess
import sys

# A platform that hands out a port wants to reach it from outside.
bind = [f"0.0.0.0:{os.environ['PORT']}"] if os.environ.get("PORT") else ["127.0.0.1:8000"]

# Threads, because requests wait for the database, Stripe and slow clients, and compute next to nothing.
worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY") or 2)
threads = int(os.environ.get("WEB_THREADS") or 8)

# A process that does not report for so long is replaced; requests may take longer, threads report nothing.
timeout = 60
# An order in flight (fetch, Stripe) is let finish before a process ends.
graceful_timeout = 30
keepalive = 5

# The files by which processes report must not lie on a disk that may stall.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

# How long a first start waits for the database; workers that start later wait as long as it takes.
database_wait_seconds = 60

# The site writes a line per request itself, without tokens; gunicorn's would show them.
accesslog = None
errorlog = "-"
loglevel = "info"

# It would write to the home folder, and nobody uses it.
control_socket_disable = True


def on_starting(server: object) -> None:
    """Look before the workers start: two that fail at once make gunicorn end in a stack trace.

    In a process of its own, so that this one imports nothing of ours and SIGHUP goes on loading new code.
    """
    check = (
        "from smi_workflow.web.serving import check_start; "
        f"check_start('web', threads={threads}, wait_seconds={database_wait_seconds})"
    )
    status = subprocess.run([sys.executable, "-c", check], check=False).returncode
    if status:
        sys.exit(status)
