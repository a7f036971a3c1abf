"""`python -m eggroll`: the command line."""

from __future__ import annotations

import sys

from eggroll.start import main

sys.exit(main())
