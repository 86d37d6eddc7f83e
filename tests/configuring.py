"""What the tests of the configuration share: a bare working directory, and errors as lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from observatory_storage.errors import ConfigurationError
from observatory_storage.settings import SETTINGS


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty directory, without any of our settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for setting in SETTINGS:
        for name in setting.names:
            monkeypatch.delenv(name, raising=False)


def problems_of(call: Any, *arguments: Any, **keywords: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        call(*arguments, **keywords)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    for problem in caught.value.problems:
        assert problem in str(caught.value)
        assert "\n" not in problem
    return caught.value.problems
