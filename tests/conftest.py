"""For every test: no hub, no telemetry, one thread to a process, and nothing in the user's own cache.

`make test` runs tests in several processes. Those of one file share one, because they share what its fixtures made.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["SLIME_OPENVINO_CACHE"] = str(Path(tempfile.gettempdir()) / "slime-tests-openvino")
