"""Threads of tests, whose errors fail the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

Start = Callable[..., None]


@contextmanager
def threads(seconds: float = 60) -> Iterator[Start]:
    """Give what calls a function in a thread of its own; the block ends when all have, with the first one's error."""
    with ThreadPoolExecutor(32) as executor:
        started: list[Future[Any]] = []

        def start(step: Callable[..., object], *arguments: object) -> None:
            started.append(executor.submit(step, *arguments))

        yield start
        for future in started:
            future.result(seconds)
