"""OpenCV, loaded when it is first needed, on one thread.

Loading takes 0.2 s of CPU. Its own threads would come on top of the workers and their threads,
and nothing here is worth splitting further.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType


@cache
def opencv() -> ModuleType:
    """Return the module `cv2`."""
    import cv2

    cv2.setNumThreads(1)
    return cv2
