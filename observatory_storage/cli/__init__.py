"""The command line: `observatory-storage`, also `python -m observatory_storage`."""

from __future__ import annotations

import gc
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its status.

    Says what to install where the `cli` extra is missing, since the console script is installed without it.
    """
    # What imports make stays until the end, and the collector would pass over it some dozens of times: 0.4 of 1.1 s.
    gc.disable()
    try:
        from observatory_storage.cli.app import run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        sys.exit(
            f"observatory-storage: the command line needs {missing}, which is not installed; "
            "install it with: pip install 'observatory-storage[cli]'"
        )
    finally:
        gc.enable()
    gc.freeze()
    run()
