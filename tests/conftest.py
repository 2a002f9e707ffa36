"""What all tests share."""

from __future__ import annotations

import os

# Two workers share the processors: each test, and each process it starts, takes one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
