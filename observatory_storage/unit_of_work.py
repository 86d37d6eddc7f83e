"""One transaction with its repositories."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from sqlalchemy.orm import Session, sessionmaker

from observatory_storage.errors import StorageError, translate_errors
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.metric import MetricRepository
from observatory_storage.repositories.trace import TraceRepository
from observatory_storage.repositories.usage import UsageRepository


class UnitOfWork:
    """A transaction that is rolled back unless it was committed.

    `with UnitOfWork(factory) as uow:` opens `uow.session` and the repositories on it; nothing is sent before
    the first statement. One object can be entered again after it was left.
    """

    session: Session
    traces: TraceRepository
    metrics: MetricRepository
    logs: LogRepository
    usage: UsageRepository

    def __init__(self, session_factory: sessionmaker[Session]) -> None:
        self._session_factory = session_factory
        self._entered = False

    def __enter__(self) -> Self:
        if self._entered:
            raise StorageError("this unit of work is open already; ask the pool for another one")
        self._entered = True
        self._stack = ExitStack()
        self._stack.enter_context(translate_errors())
        self._pid = os.getpid()
        self.session = self._session_factory()
        self._stack.callback(self._close)
        self.traces = TraceRepository(self.session)
        self.metrics = MetricRepository(self.session)
        self.logs = LogRepository(self.session)
        self.usage = UsageRepository(self.session)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        self._stack.__exit__(kind, error, trace)

    def commit(self) -> None:
        """Commit; what follows is a new transaction.

        Raises the translated error, and then nothing of the transaction is stored.
        """
        with translate_errors():
            self._open_session().commit()

    def rollback(self) -> None:
        """Undo everything since the last commit."""
        with translate_errors():
            self._open_session().rollback()

    def _open_session(self) -> Session:
        if not self._entered:
            raise StorageError("this unit of work is not open: use it inside its with block")
        return self.session

    def _close(self) -> None:
        # In a child that was forked inside the block, the transaction is the parent's to end.
        if self._pid == os.getpid():
            self.session.close()
