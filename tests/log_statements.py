"""An example of each statement of the log repository, with all that may stand in it and with nothing."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Select
from sqlalchemy.sql.dml import Delete

from observatory_storage.repositories import log_search as search
from observatory_storage.repositories import log_statements as statements
from observatory_storage.repositories.log_cursor import LogCursor
from observatory_storage.repositories.log_filters import LogFilters
from observatory_storage.repositories.log_position import Snapshot, Step
from observatory_storage.repositories.log_results import SnippetStyle
from observatory_storage.repositories.log_search import Search
from observatory_storage.repositories.log_windows import Window
from tests.logs import at

ID = uuid.uuid4()
KEYS = [(at(), ID, ID), (at(1), ID, ID)]
ANY, HOUR = Window(), Window(at(), at(hours=1))
NOTHING, AFTER = LogFilters(), LogCursor(at(), ID)
EVERYTHING = LogFilters(
    project="default",
    service_name="api",
    severity="warn",
    min_severity=14,
    trace_id=ID,
    span_id="00f067aa0ba902b7",
    event_name="gen_ai.choice",
    scope_name="lib",
    attributes={"k": 1},
)
WORD, NO_WORD = Search("link it", "link"), Search("a OR b")
PHRASE = Search('"link it"', "link", ("link", "it"), "'link' & 'it'")
OPEN, DONE = Snapshot(5, 9, (5, 7)), Snapshot(9, 9)

LOG_MODULES = (statements, search)
LOG_EXAMPLES: list[tuple[str, Select[*tuple[Any, ...]] | Delete]] = [
    ("search_facts", search.search_facts("a b")),
    ("log_by_id", statements.log_by_id(ID, HOUR)),
    ("list_logs", statements.list_logs(NOTHING, ANY, 5)),
    (
        "list_logs",
        statements.list_logs(
            EVERYTHING, HOUR, 5, offset=1, search=WORD, after=AFTER, seen_by=OPEN, include_content=True
        ),
    ),
    ("list_logs", statements.list_logs(LogFilters(severity=9), HOUR, 5, search=NO_WORD, seen_by=DONE)),
    ("few_matches", statements.few_matches(NOTHING, ANY, NO_WORD, 5, at_most=9)),
    (
        "few_matches",
        statements.few_matches(EVERYTHING, HOUR, WORD, 5, at_most=9, offset=1, after=AFTER, seen_by=OPEN),
    ),
    ("few_matches", statements.few_matches(NOTHING, HOUR, PHRASE, 5, at_most=9)),
    ("few_of_text", statements.few_of_text(NOTHING, ANY, NO_WORD, 5, at_most=9)),
    (
        "few_of_text",
        statements.few_of_text(EVERYTHING, HOUR, WORD, 5, at_most=9, offset=1, after=AFTER, seen_by=OPEN),
    ),
    ("count_logs", statements.count_logs(EVERYTHING, HOUR, 5, WORD)),
    ("rank_logs", statements.rank_logs(EVERYTHING, HOUR, WORD, 5)),
    ("rank_logs", statements.rank_logs(NOTHING, ANY, NO_WORD, 5)),
    ("logs_by_key", statements.logs_by_key(KEYS)),
    ("logs_by_key", statements.logs_by_key(KEYS, include_content=True)),
    ("snippets", statements.snippets(KEYS, WORD, SnippetStyle())),
    ("times_of_trace", statements.times_of_trace(ID)),
    ("logs_of_trace", statements.logs_of_trace(ID, ANY)),
    ("logs_of_trace", statements.logs_of_trace(ID, HOUR, with_undated=True, include_content=False)),
    ("totals", statements.totals(EVERYTHING, HOUR, WORD)),
    ("totals", statements.totals(NOTHING, ANY)),
    ("end_of_batch", statements.end_of_batch(HOUR, 5, "default")),
    ("delete_logs", statements.delete_logs(HOUR, KEYS[0], "default")),
    ("delete_logs", statements.delete_logs(ANY, None, None)),
    ("new_logs", statements.new_logs(NOTHING, ANY, Step(DONE, DONE), 5)),
    (
        "new_logs",
        statements.new_logs(EVERYTHING, HOUR, Step(OPEN, OPEN), 5, search=WORD, after=AFTER, include_content=True),
    ),
    ("current_snapshot", statements.current_snapshot()),
]
