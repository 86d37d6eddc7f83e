"""`migrate`: bring the schema up to date."""

from __future__ import annotations

import typer

from observatory_storage.cli.options import AsJson, ConfigFile, DatabaseUrl, where
from observatory_storage.cli.terminal import Terminals
from observatory_storage.connect import connect
from observatory_storage.migrations import schema_state, upgrade


def migrate(
    context: typer.Context,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
    config: ConfigFile = None,
) -> None:
    """Bring the schema up to date.

    Where it is, nothing happens. Any number of processes may do so at once: one migrates, the others wait for it.
    """
    settings = where(context, database_url, config).load()
    out = Terminals.standard().out
    with connect(settings) as connection:
        before = schema_state(connection).current
    after = upgrade(settings).current
    if as_json:
        out.print_json({"from": before, "to": after, "changed": before != after})
    elif before == after:
        out.print((f"{out.glyphs.tick} ", "green"), f"the schema is up to date, at revision {after}")
    else:
        change = f"{before or 'nothing'} {out.glyphs.arrow} {after}"
        out.print((f"{out.glyphs.tick} ", "green"), f"migrated: {change}")
