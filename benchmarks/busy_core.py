"""A core that computes while the server stores: what work that overlaps with the server's costs it all the same.

The processors of a machine share caches, memory and often, as two threads of one core, everything. No client that has
something to compute can be nearer to the limit than encoded bytes are that are sent beside this.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Final

# What a client does: it walks over rows that no cache holds and makes JSON of them. Nice, so that who sends the bytes
# from the same core is not kept from it.
_WORK: Final = """
import json, os
os.nice(19)
rows = [{"name": str(number) * 20, "attributes": {"model": str(number), "tokens": number}} for number in range(30_000)]
print("ready", flush=True)
while True:
    for row in rows:
        json.dumps(row)
"""


class BusyCore:
    """A process that works on this process's cores, and stands still but for what is measured beside it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _WORK], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        self._process.send_signal(signal.SIGSTOP)

    def beside(self, run: Callable[[], None]) -> None:
        """Run something while the process works."""
        self._process.send_signal(signal.SIGCONT)
        try:
            run()
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
