"""What was drawn lately, up to so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

MOST_BYTES: Final = 64 << 20


class Kept:
    """Encoded squares by what they show; those not asked for longest are dropped.

    Args:
        most_bytes: of all together.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.n_bytes = 0
        self._lock = threading.Lock()
        self._of: OrderedDict[Hashable, bytes] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """Return what is kept, else make it and keep it."""
        with self._lock:
            if (data := self._of.get(key)) is not None:
                self._of.move_to_end(key)
                return data
        data = make()  # two threads may make the same: no one waits
        with self._lock:
            if key not in self._of:
                self._of[key] = data
                self.n_bytes += len(data)
            while self.n_bytes > self.most_bytes:
                self.n_bytes -= len(self._of.popitem(last=False)[1])
        return data
