"""``python -m fastdiff``: the command line without an installed script."""

import sys

from .cli.entry import main

if __name__ == "__main__":  # a process that is spawned imports this file again
    sys.exit(main())
