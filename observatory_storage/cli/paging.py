"""As many rows of a list as a command was asked for, page after page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from observatory_storage.repositories import Page

Item = TypeVar("Item")

_PAGE: Final = 1000


def read_pages(
    read: Callable[[dict[str, object]], Page[Item]], cursor: str | None, limit: int
) -> tuple[list[Item], str | None]:
    """Return rows and the cursor of those that follow; `read` is given the `cursor` and `limit` of each page."""
    found: list[Item] = []
    while len(found) < limit:
        page = read({"cursor": cursor, "limit": min(limit - len(found), _PAGE)})
        found.extend(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    return found, cursor
