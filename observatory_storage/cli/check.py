"""`check`: nine steps from the configuration to a query, each with what is wrong and how to mend it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Final

import typer

from observatory_storage.cli import formats
from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, Where, where
from observatory_storage.cli.status import Status
from observatory_storage.cli.terminal import Terminal, Terminals
from observatory_storage.config import StorageConfig
from observatory_storage.errors import ConfigurationError, StorageError
from observatory_storage.health import PostgresHealth
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import TraceFilters, TraceRepository

_OLDEST_POSTGRES: Final = 15


@dataclass(slots=True)
class Finding:
    """What a step found; `more` is shown with --verbose."""

    detail: str
    more: list[str] = field(default_factory=list)
    warning: str | None = None


class WrongError(StorageError):
    """What a step found wrong, with how to mend it."""

    def __init__(self, message: str, *, remedy: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.problems = problems


@dataclass(slots=True)
class StepReport:
    """One step's outcome: `ok` is None where it was not run. `detail` says what was found, or what is wrong."""

    step: str
    ok: bool | None
    detail: str
    remedy: str | None = None
    warning: str | None = None
    seconds: float = 0.0
    more: list[str] = field(default_factory=list)


class Check:
    """The steps; each that failed is remembered, so that what depends on it is not run."""

    def __init__(self, place: Where, shown: Callable[[StepReport], None]) -> None:
        self._place = place
        self._shown = shown
        self._config: StorageConfig | None = None
        self._pool: StoragePool | None = None
        # The step that failed first, by each step that therefore has no result.
        self._blockers: dict[str, str] = {}
        self.reports: list[StepReport] = []

    @property
    def ok(self) -> bool:
        """Tell whether every step was run and found nothing wrong."""
        return all(report.ok for report in self.reports)

    def run(self) -> None:
        """Run all nine steps."""
        self._step("load the configuration", self._load)
        self._step("validate the configuration", self._validate, "load the configuration")
        self._step("open the pool", self._open, "validate the configuration")
        self._step("PostgreSQL", self._postgres, "open the pool")
        self._step("Redis", self._redis, "open the pool")
        self._step("health", self._health, "PostgreSQL")
        self._step("statistics", self._statistics, "open the pool")
        self._step("sample query", self._sample, "PostgreSQL")
        self._step("close the pool", self._close, "open the pool")

    def _step(self, name: str, action: Callable[[], Finding], needs: str | None = None) -> None:
        report = StepReport(name, None, "")
        blocker = self._blockers.get(needs) if needs else None
        if blocker is not None:
            report.detail = f"not run, because this failed: {blocker}"
        else:
            started = time.perf_counter()
            try:
                finding = action()
            except StorageError as error:
                report.ok = False
                report.detail = str(error).partition("\n")[0]
                if isinstance(error, (WrongError, ConfigurationError)):
                    report.more = [problem for problem in error.problems if problem not in report.detail]
                report.remedy = error.remedy if isinstance(error, WrongError) else None
            else:
                report.ok, report.detail, report.more = True, finding.detail, finding.more
                report.warning = finding.warning
            report.seconds = round(time.perf_counter() - started, 6)
        if not report.ok:
            self._blockers[name] = blocker or name
        self.reports.append(report)
        self._shown(report)

    @property
    def _opened(self) -> StoragePool:
        assert self._pool is not None
        return self._pool

    def _load(self) -> Finding:
        self._config = self._place.load()
        if self._place.url is not None:
            return Finding("from --database-url")
        if self._place.file is not None:
            return Finding(f"from {self._place.file}")
        return Finding("from the environment, .env and settings.toml")

    def _validate(self) -> Finding:
        config = self._config
        assert config is not None
        config.validate()
        pool, retry = config.pool, config.retry
        return Finding(
            f"database {config.postgres}, Redis {'configured' if config.redis else 'not configured'}",
            [
                f"TLS mode {config.postgres.ssl_mode}, application name {config.postgres.application_name}",
                f"project {config.project}",
                f"pool of {pool.min_connections} to {pool.max_connections} connections, "
                f"connect timeout {pool.connect_timeout_seconds:g} s, idle timeout {pool.idle_timeout_seconds:g} s, "
                f"longest life {pool.max_lifetime_seconds:g} s",
                f"up to {retry.max_attempts} attempts, waiting {retry.initial_delay_ms} ms to "
                f"{retry.max_delay_ms} ms, each time {retry.backoff_multiplier:g} times as long",
            ],
        )

    def _open(self) -> Finding:
        assert self._config is not None
        pool = StoragePool(self._config)
        started = time.perf_counter()
        try:
            pool.open()
        except StorageError:
            pool.close()
            raise
        self._pool = pool
        return Finding(f"connected in {(time.perf_counter() - started) * 1000:.0f} ms")

    def _postgres(self) -> Finding:
        health = self._opened.health_check_postgres()
        if health.error is not None:
            raise WrongError(health.error, remedy=_remedy(health.error))
        _require_release(health)
        schema = health.schema
        assert schema is not None
        if schema.current is None:
            raise WrongError(
                f"PostgreSQL {health.server_version} answers, but the database has no tables of this package yet",
                remedy="run: observatory-storage migrate",
            )
        if not schema.is_current:
            raise WrongError(
                f"PostgreSQL {health.server_version} answers, but its schema is at revision {schema.current} and "
                f"this release works with {schema.head}",
                remedy="install the newer release that migrated it"
                if schema.is_unknown
                else "run: observatory-storage migrate",
            )
        return Finding(
            f"version {health.server_version}, schema at revision {schema.current}",
            [f"round trip {_ms(health.latency_ms)}"],
            health.warning,
        )

    def _redis(self) -> Finding:
        health = self._opened.health_check_redis()
        if health is None:
            return Finding("not configured, and not needed")
        if health.error is not None:
            raise WrongError(
                f"Redis does not answer: {health.error}",
                remedy="check REDIS_URL, or leave it out: everything is stored without Redis too",
            )
        return Finding("answers", [f"round trip {_ms(health.latency_ms)}"])

    def _health(self) -> Finding:
        report = self._opened.health_check()
        if not report.healthy:
            raise WrongError(report.postgres.error or "the schema is not current", remedy="run this check again")
        redis = f", Redis {_ms(report.redis.latency_ms)}" if report.redis is not None and report.redis.healthy else ""
        return Finding(f"telemetry can be stored; PostgreSQL {_ms(report.postgres.latency_ms)}{redis}")

    def _statistics(self) -> Finding:
        stats = self._opened.stats()
        return Finding(
            f"{stats.size} connections of at most {stats.maximum}, {stats.active} in use",
            [
                f"{stats.idle} idle, {stats.minimum} kept open, {stats.waiting} calls waiting, "
                f"utilisation {stats.utilisation:.0%}"
            ],
        )

    def _sample(self) -> Finding:
        newest = TraceRepository(self._opened).list(TraceFilters(limit=1)).items
        if not newest:
            return Finding("answered; no trace is stored yet")
        started = formats.moment(newest[0].start_time)
        return Finding(f"answered; the newest trace is {newest[0].id.hex}", [f"it started {started} UTC"])

    def _close(self) -> Finding:
        self._opened.close()
        return Finding("all connections closed")


def check(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show settings, latencies and durations.")] = False,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Check step by step whether all works.

    Of what is wrong it says how to mend it; the exit status is then 1.
    """
    out = Terminals.standard().out
    inspection = Check(
        where(context, database_url, config),
        (lambda report: None) if as_json else (lambda report: _print(out, report, verbose=verbose)),
    )
    with _quiet():
        inspection.run()
    if as_json:
        out.print_json({"ok": inspection.ok, "steps": [asdict(report) for report in inspection.reports]})
    if not inspection.ok:
        raise typer.Exit(Status.FAILED)


def _print(out: Terminal, report: StepReport, *, verbose: bool) -> None:
    glyphs = out.glyphs
    mark, style = {True: (glyphs.tick, "green"), False: (glyphs.cross, "bold red"), None: (glyphs.skipped, "dim")}[
        report.ok
    ]
    took = f"  ({report.seconds * 1000:.0f} ms)" if verbose and report.ok is not None else ""
    out.print((mark, style), f" {report.step}: ", (out.text(report.detail), "" if report.ok else style), (took, "dim"))
    for line in report.more if verbose or not report.ok else ():
        out.print(f"    {out.text(line)}")
    if report.warning:
        out.print(("    note: ", "yellow"), out.text(report.warning))
    if report.remedy:
        out.print("    ", (f"{glyphs.arrow} {out.text(report.remedy)}", "bold"))


def _remedy(error: str) -> str:
    if "(SQLSTATE 42501)" in error:
        return "grant this role what it may not do, or connect as the role that migrated the database"
    return "see why the server ended the connection in its log"


def _require_release(health: PostgresHealth) -> None:
    release = re.match(r"\d+", health.server_version or "")
    if release and int(release[0]) < _OLDEST_POSTGRES:
        raise WrongError(
            f"the server is PostgreSQL {health.server_version}",
            remedy=f"use PostgreSQL {_OLDEST_POSTGRES} or later",
        )


def _ms(milliseconds: float | None) -> str:
    return "no answer" if milliseconds is None else f"{milliseconds:.1f} ms"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings out of the log: the steps say the same."""
    logger = logging.getLogger("observatory_storage")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
