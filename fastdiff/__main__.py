"""``python -m fastdiff``: the command line without an installed script."""

import sys

from .cli.main import main

sys.exit(main())
