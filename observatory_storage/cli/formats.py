"""Figures as people read them, and values as JSON."""

from __future__ import annotations

import base64
import datetime as dt
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import inspect

from observatory_storage.models import Base

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)


def duration(microseconds: int | None, *, micro: str = "µ") -> str:
    """Format a duration with three digits or so, never rounded up; nothing for None."""
    if microseconds is None:
        return ""
    if microseconds < 1_000:
        return f"{microseconds} {micro}s"
    if microseconds < 1_000_000:
        milliseconds, rest = divmod(microseconds, 1_000)
        return f"{milliseconds}.{rest // 100} ms" if milliseconds < 10 else f"{milliseconds} ms"
    seconds, rest = divmod(microseconds, 1_000_000)
    if seconds < 60:
        return f"{seconds}.{rest // 10_000:02} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m {seconds:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours < 48 else f"{hours // 24}d {hours % 24:02}h"


def count(value: int | None) -> str:
    """Format a count: exact below 10,000, then in thousands and millions; nothing for None."""
    if value is None:
        return ""
    for unit, size in (("G", 1_000_000_000), ("M", 1_000_000), ("k", 10_000)):
        if value >= size:
            divisor = 1_000 if unit == "k" else size
            return f"{value // (divisor // 10) / 10:,.1f}{unit}"
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """Format a count with what it counts, in the plural where need be; exact."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def joined(items: Sequence[str]) -> str:
    """Join items as in a sentence: with commas, and with `and` before the last."""
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def dollars(value: Decimal | None) -> str:
    """Format an amount of US dollars: cents, or two significant digits below a cent; nothing for None and 0."""
    if not value:
        return ""
    if abs(value) >= Decimal("0.01"):
        return f"${value:,.2f}"
    digits = 1 - value.adjusted()
    return f"${value:.{digits}f}" if digits <= 12 else f"${value:.1e}"


def moment(value: dt.datetime | None, *, short: bool = False) -> str:
    """Format a point in time in UTC, to the second, or to the minute and without its year where `short`."""
    if value is None:
        return ""
    utc = value.astimezone(dt.UTC)
    if short:
        return f"{utc:%m-%d %H:%M}"
    return utc.replace(tzinfo=None, microsecond=0).isoformat(" ")


def parse_since(text: str, *, now: dt.datetime) -> dt.datetime:
    """Return the point in time that `1h`, `2d` and so on before `now`, or an ISO date or time, means.

    An ISO time without an offset is UTC. Raises ValueError, with what is allowed, for anything else.
    """
    age = _AGE.fullmatch(text.strip().lower())
    try:
        if age:
            return now - dt.timedelta(seconds=int(age[1]) * _UNITS[age[2]])
        moment = dt.datetime.fromisoformat(text.strip())
    except OverflowError:
        return dt.datetime.min.replace(tzinfo=dt.UTC)
    except ValueError:
        raise ValueError(
            f"{text!r} is no point in time; give an age such as 30m, 1h, 2d or 1w, or an ISO time such as "
            "2026-01-31 or 2026-01-31T12:00Z"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def parse_duration(text: str) -> dt.timedelta:
    """Return the length of time that `30s`, `5m`, `1h` and so on means.

    Raises ValueError, with what is allowed, for anything else, and for nothing at all.
    """
    length = _AGE.fullmatch(text.strip().lower())
    try:
        found = dt.timedelta(seconds=int(length[1]) * _UNITS[length[2]]) if length else dt.timedelta()
    except OverflowError:
        found = dt.timedelta()
    if not found:
        raise ValueError(f"{text!r} is no length of time; give one such as 30s, 5m, 1h or 1d")
    return found


def step(length: dt.timedelta) -> str:
    """Format a length of time of whole seconds as `parse_duration` takes it."""
    seconds = length // dt.timedelta(seconds=1)
    unit = next(unit for unit in ("d", "h", "m", "s") if seconds % _UNITS[unit] == 0)
    return f"{seconds // _UNITS[unit]}{unit}"


def figure(value: float | None) -> str:
    """Format a number: four significant digits, in thousands and so on from 10,000 on; nothing for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size < 10_000:
        return f"{round(value):,}" if value == round(value) else f"{value:.4g}"
    for unit, of in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if of <= size < of * 1_000:
            return f"{value / of:.4g}{unit}"
    return f"{value:.3e}"


def row(instance: Base) -> dict[str, Any]:
    """Return a stored row as a mapping; columns that were not read are left out."""
    state = inspect(instance)
    return {
        attribute.key: getattr(instance, attribute.key)
        for attribute in state.mapper.column_attrs
        if attribute.key not in state.unloaded
    }


def json_value(value: Any) -> Any:
    """Return what JSON shows for a value that the encoder does not know.

    UUIDs and ids become hex digits as OpenTelemetry writes them, times ISO text, amounts numbers.
    """
    if isinstance(value, uuid.UUID):
        return value.hex
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        return raw.hex() if len(raw) in (8, 16) else base64.b64encode(raw).decode("ascii")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    return str(value)
