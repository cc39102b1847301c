"""Run the application under uvicorn, until it is told to end.

In: an application and settings. Out: nothing; the address on stderr once it listens. SIGTERM and
Ctrl-C stop new requests, wait for those at work up to a deadline, then end them as cancelled.
Logs are one JSON object a line, without anything that was said.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
import threading
import time

import uvicorn
from starlette.types import ASGIApp

from crumb.errors import UsageError
from crumb.server.connections import ImpatientProtocol
from crumb.server.settings import ServerSettings


class JsonLines(logging.Formatter):
    """A log record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", None) or {"event": record.getMessage()}
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": stamp, "level": record.levelname.lower(), **facts}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Structured logs of the server and of uvicorn's errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("crumb", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level if name == "crumb" else max(level, logging.WARNING))


def listening_socket(settings: ServerSettings) -> socket.socket:
    """The socket, so that a port in use is one line. Raises: UsageError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((settings.host.strip("[]"), settings.port))
    except (OSError, OverflowError) as error:
        opened.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"this address cannot be listened on: {reason}",
            where=f"{settings.host}:{settings.port}",
            do="Give another --port or --host",
        ) from error
    opened.set_inheritable(True)
    return opened


def configuration(app: ASGIApp, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn runs an application."""
    return uvicorn.Config(
        app,
        http=ImpatientProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        limit_concurrency=settings.most_connections,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )


def serve(app: ASGIApp, settings: ServerSettings, opened: socket.socket) -> None:
    """Answer until the process is told to end; by SIGTERM that is a success."""
    if threading.current_thread() is threading.main_thread():
        # uvicorn raises the signal again for whoever had it before
        signal.signal(signal.SIGTERM, lambda number, frame: None)
    uvicorn.Server(configuration(app, settings)).run(sockets=[opened])
