"""The event log: one line on standard error for each event an operator cares about, of whichever
process.

Owns: the form of a line. Does not own: the access log (proxy.accesslog), a router's own log files.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from gatewayd.core.model import Log


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname} {_message(self, record)}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(self, record),
        }
        return json.dumps(line, ensure_ascii=False)


def configure(log: Log) -> None:
    """Replace whatever handled log records before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log.format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log.level.upper())
    # One line a request is the access log's matter, and the admin address has none.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def announce(text: str) -> None:
    """A line that is printed at every level: whoever starts the gateway waits for it."""
    logger = logging.getLogger("gatewayd.ready")
    logger.setLevel(logging.INFO)
    logger.info("%s", text)


def _time(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC).replace(tzinfo=None)
    return time.isoformat(timespec="milliseconds") + "Z"  # as in access lines


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    message = record.getMessage().replace("\n", " | ")
    if record.exc_info:
        message += " | " + formatter.formatException(record.exc_info).replace("\n", " | ")
    return message
