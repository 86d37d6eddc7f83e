"""Resources: content-addressed parents of all signals, each sent once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from observatory_storage.identity import content_id
from observatory_storage.text import repair_json
from observatory_storage.writers.convert import GivenRow, Rejections, WireRow, are_none, convert_column, convert_rows
from observatory_storage.writers.rows import Connection, insert_rows
from observatory_storage.writers.tables import RESOURCES, SPANS

_ID_COLUMN: Final = SPANS.columns[SPANS.index["resource_id"]]


class ResourceSet:
    """The resources of a batch, in wire form by id."""

    def __init__(self, rejections: Rejections) -> None:
        self.rows: dict[bytes, WireRow] = {}
        self._rejections = rejections

    def resolve(
        self, ids: list[Any], given: list[Any], projects: Sequence[str], failed: dict[int, str]
    ) -> list[bytes | None]:
        """Return the resource id of each row: that of its resource, or else the one it was given.

        A resource that cannot be stored is rejected by itself, once, and its rows have none. Reasons to reject
        rows go to `failed`, by place.
        """
        if are_none(given):
            return convert_column(_ID_COLUMN, ids, failed, {})
        # Decoders share one object among all rows of a resource, and most batches are of one project.
        keys: list[Any] = list(map(id, given))
        if projects.count(projects[0]) < len(projects):
            keys = list(zip(keys, projects, strict=True))
        firsts = dict(zip(keys, zip(given, projects, strict=True), strict=True))
        resolved = {
            key: None if resource is None else self._resolve(resource, project)
            for key, (resource, project) in firsts.items()
        }
        found = list(map(resolved.__getitem__, keys))
        if are_none(ids):
            return found
        own = [own if resource is None else key for own, resource, key in zip(ids, given, found, strict=True)]
        return convert_column(_ID_COLUMN, own, failed, {})

    def _resolve(self, resource: GivenRow, project: str) -> bytes | None:
        row = dict(resource)
        try:
            row["attributes"] = repair_json(resource.get("attributes") or {})
            key = resource_id(row, project)
        except RecursionError:
            self._rejections.add_once(resource, "attributes is nested too deeply to be stored as JSON")
            return None
        except Exception as error:  # noqa: BLE001 - the value's own code failed: that costs its resource
            self._rejections.add_once(resource, f"attributes cannot be read: {type(error).__name__}")
            return None
        if key not in self.rows:
            row |= {"id": key, "project": project}
            converted = self._rejections.sift([row], lambda failed: convert_rows(RESOURCES.full, [row], failed))
            if not converted:
                return None
            self.rows[key] = converted[0]
        return key


def resource_id(resource: Mapping[str, Any], project: str) -> bytes:
    """Return the content address of a resource of a project, whose attributes are repaired."""
    named = [repair_json(resource.get(name) or None) for name in ("service_name", "schema_url")]
    return content_id("resource", project, *named, resource["attributes"])


def write_resources(connection: Connection, resources: Mapping[bytes, WireRow], known: Collection[Any]) -> list[bytes]:
    """Insert, in id order, the resources that are not known to be stored; return their ids."""
    new = sorted(key for key in resources if key not in known)
    if new:
        insert_rows(connection, RESOURCES, RESOURCES.full, [[resources[key] for key in new]])
    return new
