"""The round on real devices and hosts: one bit of every coordinate up, one bit down.

`scale_by_sign_decoder_sharded` takes the place of the gradients' all-reduce in a data-
parallel step under `jax.shard_map`; `sign_all_reduce` is the collective alone.
Start with the first; `slice_state` is for who uses the second.
"""

from signfd_jax.distributed._states import slice_state
from signfd_jax.distributed.collective import sign_all_reduce
from signfd_jax.distributed.transform import (
    ShardedSignDecoderState,
    ShardedTransformation,
    scale_by_sign_decoder_sharded,
)

__all__ = [
    "ShardedSignDecoderState",
    "ShardedTransformation",
    "scale_by_sign_decoder_sharded",
    "sign_all_reduce",
    "slice_state",
]
