"""`python -m hpcbridge_gitlab`."""

import sys

from hpcbridge_gitlab.cli import main

sys.exit(main())
