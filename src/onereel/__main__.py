"""`python -m onereel`: the command line."""

from __future__ import annotations

import sys

from onereel.apps.cli.main import main

sys.exit(main())
