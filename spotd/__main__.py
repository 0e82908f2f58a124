"""`python -m spotd`."""

from __future__ import annotations

import sys

from spotd.cli import main

sys.exit(main())
