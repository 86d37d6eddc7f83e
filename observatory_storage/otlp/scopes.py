"""What all records of one resource and scope share, whatever their signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from observatory_storage.models.rows import ResourceRow
from observatory_storage.otlp.conventions import PROJECT_KEYS, SERVICE_NAME
from observatory_storage.otlp.facts import text


@dataclass(frozen=True, slots=True)
class Scope:
    """A resource with one of its instrumentation scopes, as columns of spans and log records."""

    resource: ResourceRow
    columns: dict[str, Any]


def resource_row(attributes: dict[str, Any], schema_url: str, dropped_attributes_count: int) -> ResourceRow:
    """Build the row of a resource; every record of it refers to this one object.

    What has no column of its own is kept among the attributes, under names that begin with `otel.resource.`.
    """
    if dropped_attributes_count:
        attributes["otel.resource.dropped_attributes_count"] = dropped_attributes_count
    row = ResourceRow(
        service_name=text(attributes.get(SERVICE_NAME)), schema_url=schema_url or None, attributes=attributes
    )
    project = first_text(attributes, PROJECT_KEYS)
    if project is not None:
        row["project"] = project
    return row


def scope_of(
    resource: ResourceRow,
    name: str,
    version: str,
    attributes: dict[str, Any],
    schema_url: str,
    dropped_attributes_count: int,
) -> Scope:
    """Combine a resource with an instrumentation scope.

    A scope's schema URL and its count of dropped attributes are kept among the scope's attributes, as
    `otel.scope.schema_url` and `otel.scope.dropped_attributes_count`.
    """
    if schema_url:
        attributes["otel.scope.schema_url"] = schema_url
    if dropped_attributes_count:
        attributes["otel.scope.dropped_attributes_count"] = dropped_attributes_count
    columns: dict[str, Any] = {
        "resource": resource,
        "service_name": resource["service_name"],
        "scope_name": name or None,
        "scope_version": version or None,
        "scope_attributes": attributes or None,
    }
    if "project" in resource:
        columns["project"] = resource["project"]
    return Scope(resource, columns)


def first_text(attributes: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Return the first of some attributes that is a name."""
    return next((found for key in keys if (found := text(attributes.get(key))) is not None), None)
