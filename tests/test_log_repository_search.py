"""A search finds words in bodies, ranked or by time, by the index where there is one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory_storage.errors import InvalidFilterError
from observatory_storage.models import LogRecord
from observatory_storage.pool import StoragePool
from observatory_storage.repositories import log as log_module
from observatory_storage.repositories.log import LogRepository
from observatory_storage.repositories.log_filters import LogFilters
from observatory_storage.repositories.log_results import SnippetStyle
from observatory_storage.repositories.log_search import find_search
from tests.logs import Row, at, ids, index_hours, log, make_hours, newest_first, sent, store_logs
from tests.servers import Servers

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def store_bodies(pool: StoragePool, bodies: Iterable[str | None], **columns: Any) -> list[Row]:
    """Store a record a second with these bodies; every other hour from noon has a text index."""
    rows = [log(number, body=body, **columns) for number, body in enumerate(bodies)]
    store_logs(pool, rows)
    return rows


BODIES = (
    "Connection to db-1 timed out after 30s",
    "the order was paid, the connection was closed",
    "timed connection OUT",
    "Zahlung für Bücher über 3,50 € fehlgeschlagen",
    "İstanbul'da ödeme gerçekleşmedi",
    "\u212aelvin scale",
    "платёж отклонён банком",
    "日本語 のログ",
    "GET https://api.example.com/v1/orders?id=7 failed for a.user@example.com",
    "it's 100% done \\ with C:\\temp and a'quote",
    "naïve café",
    None,
    "",
    "order_created user-id=42 request_id=3f2b-77",
    "word17",
    "word170 xword17 word17x b word17",
    "(Word17-b)",
    "WORD17,word170",
    "日 word17\u3002日",
    "word17/a1 word17_a1",
    "a-1b",
    "12.5abc abcd",
    "https://api.example.org/path/more http://h.example/path",
    "word1700 aword17 word17b",
)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "indexed"])
def searched(
    request: pytest.FixtureRequest, servers: Servers, server_kind: str
) -> Iterator[tuple[StoragePool, list[Row]]]:
    """A database with the bodies, that is only read, and their rows."""
    with servers.pool(server_kind) as pool:
        make_hours(pool, 0, 1)
        if request.param:
            index_hours(pool, [0])
        yield pool, store_bodies(pool, BODIES)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("connection", {0, 1, 2}),
        ("CONNECTION", {0, 1, 2}),
        ("connect", set()),
        ("timed out", {0, 2}),
        ('"timed out"', {0}),
        ("connection -closed", {0, 2}),
        ("connection -timed -closed", set()),
        ("closed or out", {0, 1, 2}),
        ('"timed out" OR paid', {0, 1}),
        ('connection -"timed out"', {1, 2}),
        ("für bücher", {3}),
        ("FÜR BÜCHER", {3}),
        ("istanbul", {4}),
        ("gerçekleşmedi", {4}),
        ("kelvin", {5}),
        ("ПЛАТЁЖ банком", {6}),
        ("日本語", {7}),
        ("api.example.com", {8}),
        ("a.user@example.com", {8}),
        ("it's", {9}),
        ("a'quote", {9}),
        ("café", {10}),
        ("order_created", {13}),
        ("3f2b-77", {13}),
        ("30s", {0}),
        ("order", {1, 13}),
        ("nothing", set()),
        ("connection !!! ???", {0, 1, 2}),
        ("& | ! ( ) : * < > connection", {0, 1, 2}),
        ("connection\0closed", set()),
        ("word17", {14, 15, 16, 17, 18, 19}),
        ("word17-b", {16}),
        ("b", {15, 16}),
        ("42", {13}),
        ("1b", {20}),
        ("abc", {21}),
        ("/path", {22}),
        ("a1", {19}),
    ],
)
def test_words_are_found(searched: tuple[StoragePool, list[Row]], text: str, found: set[int]) -> None:
    pool, rows = searched
    repository = LogRepository(pool)
    expected = ids(newest_first(rows[number] for number in found))
    assert ids(repository.search_text(text)) == expected
    assert ids(repository.list(LogFilters(search=text))) == expected
    assert set(ids(repository.search_text(text, ranked=True))) == set(expected)
    assert repository.get_stats(LogFilters(search=text)).log_count == len(expected)


@pytest.mark.parametrize("text", ["", " ", "!!!", "... --- ,;", "&|!", "🚀", '"', '"-"', "\0", "()", "a" * 1999 + "!"])
def test_a_search_without_a_word_is_refused(pool: StoragePool, text: str) -> None:
    repository = LogRepository(pool)
    if text.startswith("aaa"):
        assert repository.search_text(text).items == ()
        return
    with sent(pool) as seen:
        for call in (repository.list, repository.search_logs, repository.get_stats, repository.stream_logs):
            with pytest.raises(InvalidFilterError, match=r"search: the text .* holds no word to search for$"):
                call(LogFilters(search=text))
    assert not any("FROM logs" in statement for statement in seen)


@pytest.mark.parametrize("text", ["-foo", '-"foo bar"', "-foo -bar", "foo OR -bar", "-a or -b"])
def test_a_search_that_only_excludes_is_refused(pool: StoragePool, text: str) -> None:
    with pytest.raises(InvalidFilterError, match="only excludes words"):
        LogRepository(pool).search_text(text)


def test_ranking_and_snippets_need_a_search(pool: StoragePool) -> None:
    for options in ({"ranked": True}, {"snippets": True}):
        with pytest.raises(InvalidFilterError, match="search: "):
            LogRepository(pool).search_logs(LogFilters(), **options)


def unhinted(pool: StoragePool, text: str, project: str) -> set[uuid.UUID]:
    """What the server finds without any look before."""
    vector = "to_tsvector('simple', body) @@ websearch_to_tsquery('simple', :text)"
    with pool.session() as session:
        statement = sa.text(f"SELECT id FROM logs WHERE project = :project AND {vector}")
        return set(session.execute(statement, {"text": text, "project": project}).scalars())


PIECES = (*"ab1.-_/:@  '&<>+é", "9e5", "http://", "www.", "com", "<b>", "&amp;", "\u212a", "İ", "日", "\u0301")


@SETTINGS
@given(
    bodies=st.lists(st.lists(st.sampled_from(PIECES), max_size=10).map("".join), min_size=5, max_size=20),
    text=st.lists(st.sampled_from((*PIECES, "k", "i", " ", " ")), min_size=1, max_size=6).map("".join),
    quoted=st.booleans(),
)
def test_the_look_before_hides_nothing(pool: StoragePool, bodies: list[str], text: str, quoted: bool) -> None:
    project = uuid.uuid4().hex
    store_logs(pool, [log(number, body=body, project=project) for number, body in enumerate([*bodies, text])])
    asked = f'"{text}"' if quoted else text
    try:
        found = LogRepository(pool).search_text(asked, project=project)
    except InvalidFilterError:
        return
    assert set(ids(found)) == unhinted(pool, asked, project)


def hinted(pool: StoragePool, text: str) -> int:
    """How many bodies are read as words."""
    with pool.session() as session:
        search = find_search(session, text)
        assert search is not None
        return session.execute(sa.select(sa.func.count()).select_from(LogRecord).where(search.hint)).scalar_one()


def test_a_part_of_a_longer_word_is_no_reason_to_read_a_body(pool: StoragePool) -> None:
    store_bodies(pool, [*(f"a word{number} b" for number in range(160, 200)), "a word17 b", "sword17", "Word17. b"])
    assert hinted(pool, "word17") == 2
    assert hinted(pool, "word1") == 0
    assert hinted(pool, "word") == 42
    assert hinted(pool, "wor") == 0


@pytest.mark.parametrize("indexed", [False, True])
def test_a_phrase_of_common_words_is_read_where_its_words_meet(pool: StoragePool, indexed: bool) -> None:
    make_hours(pool, 0, 1)
    if indexed:
        index_hours(pool, [0])
    far = "red " + "x " * 9000 + "hot end"
    phrases = ["a Red-hot pan", "red, HOT!", "red <b>hot</b>", "red http://hot", "red &amp; hot", "one red hot"]
    others = ["hot red", "red is hot", "redhot", "red hotter", "bored hot", "red 1 hot", "red", None, far]
    rows = store_bodies(pool, [*phrases, *others])
    repository = LogRepository(pool)
    assert ids(repository.search_text('"red hot"')) == ids(newest_first(rows[:6]))
    assert ids(repository.search_text('"red hot" pan')) == [rows[0]["id"]]
    assert ids(repository.search_text('"red hot" -pan -b')) == ids(newest_first(rows[1:6]))
    assert ids(repository.search_text('"one red-hot"')) == []
    assert ids(repository.search_text('"one red hot"')) == [rows[5]["id"]]
    assert hinted(pool, '"red hot"') == 7
    # Places end at 16,383: what is behind seems to be one.
    rows += store_bodies(pool, ["x " * 16_381 + "red a b hot"])
    assert ids(repository.search_text('"red hot"'))[-7:] == ids(newest_first([*rows[:6], rows[-1]]))


def test_a_word_that_is_cut_where_the_searched_part_ends_is_found(pool: StoragePool) -> None:
    rows = store_bodies(pool, ["x " * 62_498 + " abcd", "y"])
    assert ids(LogRepository(pool).search_text("abc")) == [rows[0]["id"]]
    assert LogRepository(pool).search_text("abcd").items == ()


@pytest.mark.parametrize(
    ("style", "said"),
    [
        ({"max_words": 0}, "max_words is 0 and must be 2 to 1,000"),
        ({"max_words": 1}, "max_words is 1 and"),
        ({"max_words": -5}, "max_words is -5 and"),
        ({"max_words": 2**40}, "max_words is"),
        ({"max_words": "5"}, "max_words is '5' and"),
        ({"max_fragments": -1}, "max_fragments is -1 and must be 1 to 100"),
        ({"max_fragments": 0}, "max_fragments is 0 and"),
        ({"start_mark": "a\0b"}, "start_mark holds a character that PostgreSQL cannot take"),
        ({"end_mark": "\ud800"}, "end_mark holds a character"),
        ({"delimiter": None}, "delimiter is None and must be text"),
    ],
)
def test_a_style_that_the_server_would_not_take_is_refused(pool: StoragePool, style: Any, said: str) -> None:
    with sent(pool) as seen, pytest.raises(InvalidFilterError, match=said) as refused:
        LogRepository(pool).search_text("x", snippets=SnippetStyle()._replace(**style))
    assert len(refused.value.problems) == 1
    assert not seen


def test_marks_come_as_they_are(pool: StoragePool) -> None:
    store_bodies(pool, ["it failed here"])
    for mark in ("", "'", '"', "\\", "\\\\", ', MaxWords="', "[\t"):
        (match,) = LogRepository(pool).search_text("failed", snippets=SnippetStyle(mark, mark, max_words=2))
        assert match.snippet is not None
        assert f"{mark}failed{mark}" in match.snippet


ALPHABET = ("red", "Green", "BLUE", "grün", "red-hot", "k9")


def matches(body: str, asked: list[tuple[str, bool]]) -> bool:
    words = {word for whole in body.lower().split() for word in (whole, *whole.split("-"))}
    return all((word.lower() in words) is wanted for word, wanted in asked)


@SETTINGS
@given(
    bodies=st.lists(st.lists(st.sampled_from(ALPHABET), max_size=4).map(" ".join), max_size=12),
    asked=st.lists(st.tuples(st.sampled_from(("red", "GREEN", "blue", "GRÜN", "K9")), st.booleans()), min_size=1),
    limit=st.integers(1, 5),
    ranked=st.booleans(),
)
def test_searches_find_what_a_plain_look_finds(
    pool: StoragePool, bodies: list[str], asked: list[tuple[str, bool]], limit: int, ranked: bool
) -> None:
    project = uuid.uuid4().hex
    rows = [log(number * 1000, body=body, project=project) for number, body in enumerate(bodies)]
    store_logs(pool, rows)
    text = " ".join(word if wanted else f"-{word}" for word, wanted in asked)
    repository = LogRepository(pool)
    if not any(wanted for _, wanted in asked):
        with pytest.raises(InvalidFilterError):
            repository.search_text(text)
        return
    expected = [row for row in newest_first(rows) if matches(row["body"], asked)]
    found: list[uuid.UUID] = []
    cursor: str | None = None
    for _ in range(100):
        page = repository.search_text(text, ranked=ranked, project=project, limit=limit, cursor=cursor)
        found += ids(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(ids(expected))
    if not ranked:
        assert found == ids(expected)


def test_words_of_structured_bodies_are_found(pool: StoragePool) -> None:
    # The writer fills the body with a structured body's words.
    rows = store_bodies(pool, ["user asked\nrefund", "assistant\ndenied"], body_json={"role": "user"})
    (match,) = LogRepository(pool).search_text("refund", snippets=True)
    assert match.log.id == rows[0]["id"]
    assert match.snippet == "user asked\n«refund»"


def test_a_search_combines_with_every_other_filter(pool: StoragePool) -> None:
    make_hours(pool, 0, 2)
    rows = [
        log(
            number * 60,
            body="slow query" if number % 2 else "fast query",
            service_name=("api", "db")[number % 3 % 2],
            severity_number=(9, 17)[number % 5 % 2],
            project=("default", "other")[number % 7 % 2],
            attributes={"k": number % 2},
        )
        for number in range(100)
    ]
    store_logs(pool, rows)
    filters = LogFilters(
        search="slow query",
        service_name="db",
        severity="error",
        project="default",
        attributes={"k": 1},
        timestamp_from=at(60),
        timestamp_before=at(5000),
        limit=1000,
    )
    expected = [
        row
        for row in newest_first(rows)
        if row["body"] == "slow query"
        and (row["service_name"], row["severity_number"], row["project"]) == ("db", 17, "default")
        and at(60) <= row["timestamp"] < at(5000)
    ]
    assert expected
    repository = LogRepository(pool)
    assert ids(repository.list(filters)) == ids(expected)
    assert set(ids(repository.search_logs(filters, ranked=True))) == set(ids(expected))


def test_a_ranked_search_has_the_best_first_and_equal_ones_newest_first(pool: StoragePool) -> None:
    rows = store_bodies(
        pool,
        [
            "payment " + "word " * 200 + "failed",
            "payment failed",
            "payment failed, payment failed again",
            "payment failed",
            "nothing",
        ],
    )
    page = LogRepository(pool).search_text("payment failed", ranked=True)
    assert ids(page) == [rows[number]["id"] for number in (2, 3, 1, 0)]
    ranks = [match.rank for match in page]
    assert ranks == sorted((rank for rank in ranks if rank is not None), reverse=True)
    assert all(match.rank is None for match in LogRepository(pool).search_text("payment"))


def test_a_ranked_search_ranks_the_newest_matches_alone(pool: StoragePool, monkeypatch: pytest.MonkeyPatch) -> None:
    make_hours(pool, 0, 3)
    monkeypatch.setattr(log_module, "RANKED_MATCHES", 7)
    rows = [log(number * 1000, body="error error" if number < 3 else "error") for number in range(10)]
    store_logs(pool, rows)
    found = LogRepository(pool).search_text("error", ranked=True)
    assert ids(found) == ids(newest_first(rows))[:7]


def test_snippets_mark_what_was_found(pool: StoragePool) -> None:
    long = "lead " * 300 + "a payment failed here " + "tail " * 300 + "and failed there"
    store_bodies(pool, ["plain failed text", long, '<b>failed</b> & "done"'])
    for ranked in (False, True):
        page = LogRepository(pool).search_text("failed", ranked=ranked, snippets=True)
        shown = {match.log.timestamp.second: match.snippet for match in page}
        assert shown[0] == "plain «failed» text"
        # The tags of HTML are left out.
        assert shown[2] == '«failed»  & "done'
        assert shown[1] is not None
        assert "payment «failed» here" in shown[1]
        assert len(shown[1]) < 400
    style = SnippetStyle(start_mark='<em class="hit">', end_mark="</em>", max_words=3, max_fragments=1)
    (match,) = LogRepository(pool).search_text("payment", snippets=style)
    assert match.snippet is not None
    assert '<em class="hit">payment</em>' in match.snippet
    assert len(match.snippet.split()) <= 5
    assert all(match.snippet is None for match in LogRepository(pool).search_text("failed"))


def test_snippets_take_one_statement_more(pool: StoragePool) -> None:
    store_bodies(pool, ["failed"] * 5)
    counts = []
    for ranked in (False, True):
        for snippets in (False, True):
            with sent(pool) as seen:
                LogRepository(pool).search_text("failed", ranked=ranked, snippets=snippets)
            counts.append(len(seen))
    # What the search means, the partitions, the matches of the window, the records.
    assert counts == [4, 5, 4, 5]


@pytest.mark.parametrize("indexed", [False, True])
def test_a_huge_body_does_not_break_the_search(pool: StoragePool, indexed: bool) -> None:
    make_hours(pool, 0, 1)
    words = " ".join(f"w{number:07d}" for number in range(230_000))
    assert len(words) > 2_000_000
    if indexed:
        index_hours(pool, [0])
    rows = store_bodies(pool, ["small w0000001", words, "other"])
    repository = LogRepository(pool)
    started = time.monotonic()
    page = repository.search_text("w0000001", ranked=True, snippets=True)
    assert set(ids(page)) == {rows[0]["id"], rows[1]["id"]}
    assert all(match.snippet and "«w0000001»" in match.snippet and len(match.snippet) <= 2000 for match in page)
    # So much is searched, and no more.
    assert ids(repository.search_text("w0013800")) == [rows[1]["id"]]
    assert repository.search_text("w0229999").items == ()
    assert time.monotonic() - started < 20
