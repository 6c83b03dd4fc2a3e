"""Real text for the long tests: bytes of the running Python's own standard library."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np

from nested_jax.data.text.stdlib_text import stdlib_root, texts_of

SYMBOLS = 256


@lru_cache
def text_bytes(count: int) -> np.ndarray:
    """Return the first `count` bytes, int32."""
    parts, size = [], 0
    for _, text in texts_of(stdlib_root(), Counter()):
        data = text.encode()
        parts.append(np.frombuffer(data, np.uint8))
        size += len(data)
        if size >= count:
            break
    return np.concatenate(parts)[:count].astype(np.int32)
