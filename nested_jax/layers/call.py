"""What the layers of a model have to know about one call, beside the activations of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

from nested_jax.ops.chunking import Rows
from nested_jax.types import Array


@dataclass(frozen=True, eq=False)
class Call:
    """A call reads T tokens of each row; the same value serves every layer.

    Rows are streams of documents: `segment_BT` numbers them from 1 and `position_BT` counts tokens
    from the start of the token's own document.
    """

    rows: Rows
    position_BT: Array  # int32
    segment_BT: Array  # int32; 0 for tokens that do not exist
    slot_segment_BU: Array  # int32, document of every slot of the attention caches; 0 is empty
    slots_B: Array  # int32, slots in use of a full-attention cache
    mask: Array | None = None  # bool, what attention may see; None without attention
    twice: bool = False  # the layers are differentiated twice: they are read by the inner loop
