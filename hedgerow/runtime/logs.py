"""Log lines: JSON for machines, colours for people, the same fields in both.

Lines of libraries that use the standard library's logging come out in the same shape.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.types import EventDict, Processor, WrappedLogger


def configure_logs(
    role: str, identity: str, *, json: bool, level: str, stream: TextIO = sys.stderr
) -> None:
    """Send all logs of this process to `stream`, each with its `role` and `id`.

    `level` is the lowest that is shown: "debug", "info", "warning" or "error". Raises ValueError for
    any other.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"log level {level!r} is not one of debug, info, warning, error")

    def say_who(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
        return {**fields, "role": role, "id": identity}

    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        say_who,
    ]
    _route_standard_logging(shared, _renderer(json=json, stream=stream), number, stream)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _renderer(*, json: bool, stream: TextIO) -> list[Processor]:
    if json:
        return [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    return [structlog.dev.ConsoleRenderer(colors=stream.isatty())]


def _route_standard_logging(
    shared: list[Processor], renderer: list[Processor], level: int, stream: TextIO
) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
