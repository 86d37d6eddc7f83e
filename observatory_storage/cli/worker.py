"""`worker` stores what producers have put into the queue; `queue` says what is in it."""

from __future__ import annotations

import dataclasses
import signal
from typing import Annotated, Any

import typer

from observatory_storage.cli import formats
from observatory_storage.cli.ingest import require_schema
from observatory_storage.cli.options import (
    AsJson,
    ConfigFile,
    DatabaseUrl,
    RedisUrl,
    for_one_command,
    redis_of,
    where,
    with_redis,
)
from observatory_storage.cli.status import Status, fail
from observatory_storage.cli.terminal import Terminals
from observatory_storage.pool import StoragePool
from observatory_storage.realtime import QueueStats, RedisIngestQueue
from observatory_storage.writers import IngestWorker, WriteMethod, WriterConfig
from observatory_storage.writers import worker as defaults

QueueName = Annotated[str, typer.Option("--queue", metavar="NAME", help="The queue's name.")]


def worker(
    context: typer.Context,
    queue_name: QueueName = "ingest",
    project: Annotated[
        str | None,
        typer.Option(envvar="OBSERVATORY_PROJECT", help="The project of rows that name none.", show_default=False),
    ] = None,
    consumer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="This worker's name. Default: one of its own.", show_default=False),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="How many requests to store in one go.")] = (
        defaults.DEFAULT_BATCHES
    ),
    claim_idle: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="When a silent worker's requests are taken over.")
    ] = defaults.DEFAULT_CLAIM_IDLE_SECONDS,
    max_attempts: Annotated[
        int, typer.Option(min=1, help="After how many attempts a request goes to the dead letters.")
    ] = defaults.DEFAULT_MAX_ATTEMPTS,
    exit_when_idle: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="End when nothing came for so long. Default: never."),
    ] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Store the OTLP requests of a queue, until SIGTERM or Ctrl-C: what is under way is finished first.

    Run as many as you like. One that is killed loses nothing: another takes over what it had taken, and what it had
    stored already is stored once. Needs REDIS_URL.
    """
    settings = for_one_command(with_redis(where(context, database_url, config).load(), redis_url))
    out = Terminals.standard().out
    told_to_end: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        # A second one ends it at once, and the next worker does the rest.
        signal.signal(number, lambda number, _: _end(told_to_end, number))
    with StoragePool(settings) as pool:
        require_schema(pool)
        store = RedisIngestQueue.from_config(settings.redis, name=queue_name)
        work = IngestWorker(
            pool,
            store,
            consumer=consumer,
            config=WriterConfig(method=WriteMethod.COPY, project=project),
            batches=requests,
            claim_idle_seconds=claim_idle,
            max_attempts=max_attempts,
        )
        stats = work.run(lambda: bool(told_to_end), idle_timeout_seconds=exit_when_idle)
        store.close()
    if as_json:
        out.print_json(dataclasses.asdict(stats))
    else:
        stored = f"stored {formats.counted(stats.batches, 'request')} with {formats.counted(stats.rows, 'row')}"
        buried = formats.counted(stats.buried, "request")
        out.print(f"{stored}; {formats.counted(stats.rejected, 'row')} rejected, {buried} to the dead letters")
    if stats.buried or stats.rejected:
        raise typer.Exit(Status.REJECTED)


def _end(told: list[int], number: int) -> None:
    if told:
        raise SystemExit(128 + number)
    told.append(number)


def queue(
    context: typer.Context,
    queue_name: QueueName = "ingest",
    dead: Annotated[bool, typer.Option("--dead", help="List the dead letters, the newest first.")] = False,
    revive: Annotated[
        str | None, typer.Option(metavar="ID", help="Put a dead letter into the queue again; all for each of them.")
    ] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Print what is in the queue: how much waits, how much is under way, how old it is, and what nobody could store."""
    settings = redis_of(where(context, database_url, config), redis_url)
    out = Terminals.standard().out
    store = RedisIngestQueue.from_config(settings, name=queue_name)
    if revive is not None:
        letters = [letter for letter in store.dead_letters(10_000) if revive in ("all", letter.id)]
        if not letters and revive != "all":
            fail(f"no dead letter has the id {revive}")
        for letter in reversed(letters):
            store.revive(letter)
        out.print(f"{formats.counted(len(letters), 'request')} put into the queue again")
    elif dead:
        for letter in store.dead_letters(1_000):
            found: dict[str, Any] = {
                "id": letter.id,
                "reason": letter.reason,
                "deliveries": letter.deliveries,
                "signal": letter.batch.signal,
                "project": letter.batch.project,
                "bytes": len(letter.batch.payload),
            }
            if as_json:
                out.print_json(found)
            else:
                size = f"{len(letter.batch.payload):,} bytes of {letter.batch.signal}"
                out.print(f"{letter.id}  {size}  {out.text(letter.reason)}")
    else:
        stats = store.stats()
        if as_json:
            out.print_json(dataclasses.asdict(stats))
        else:
            out.print(_sentence(stats))
    store.close()


def _sentence(stats: QueueStats) -> str:
    age = "" if stats.oldest_seconds is None else f", the oldest for {stats.oldest_seconds:,.1f} s"
    held = f"{formats.counted(stats.depth, 'request')} of {stats.bytes:,} bytes{age}"
    workers = formats.counted(stats.consumers, "worker")
    letters = formats.counted(stats.dead, "dead letter")
    return f"{held}: {stats.lag:,} wait, {stats.pending:,} are under way; {workers}; {letters}"
