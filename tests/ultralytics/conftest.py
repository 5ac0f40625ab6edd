"""These need torch: `make test-ultralytics` runs them in an environment of their own, `make test` goes by here."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("ultralytics") else ["test_*.py"]
