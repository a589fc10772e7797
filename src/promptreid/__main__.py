"""`python -m promptreid`, the same as the command `promptreid`."""

import sys

from promptreid.cli.main import main

sys.exit(main())
