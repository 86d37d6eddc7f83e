"""`python -m benchmarks`."""

import sys

if __name__ == "__main__":
    # Not above: processes that a suite starts import this file first, and need none of it.
    from benchmarks.command import main

    sys.exit(main())
