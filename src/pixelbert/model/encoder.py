"""The Transformer's layers, the last one only where somebody reads what comes out: Eq. (1) to (3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA_FLOAT32 = "sdpa_float32"
"""Name of an attention like `sdpa`, computed in float32 whatever the autocast."""


def sdpa_float32(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """transformers' `sdpa` outside of the autocast.

    On a processor torch's attention is no faster in bfloat16, and its backward pass takes 8 times as long as in float32
    (64 texts of 36 places, 12 heads: 82 ms a layer instead of 11), more than all matrix products of the layer together.
    """
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)


AttentionInterface.register(SDPA_FLOAT32, sdpa_float32)
AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)


_FIRST_PLACES = ("sdpa", SDPA_FLOAT32)  # attentions that can be asked about some places alone


def encode(encoder: Any, hidden: Tensor, mask: Tensor | None, places: int | None = None) -> Tensor:
    """transformers' `BertEncoder`, all layers; of the last one only the first `places` places.

    What the last layer makes of a pixel is read by nobody: every head reads [CLS] or the words. Each place still
    attends to all others, so what comes out is the same; a sixth of a network of six layers falls away for a head on
    [CLS].

    Args:
        encoder: a `BertEncoder`. hidden: [T, S, d].
        mask: as `create_bidirectional_mask` gives it for that encoder. places: None = all S.

    Returns [T, places, d].
    """
    if places is None or places >= hidden.shape[1] or encoder.config._attn_implementation not in _FIRST_PLACES:
        out: Tensor = encoder(hidden, attention_mask=mask).last_hidden_state
        return out if places is None else out[:, :places]
    *layers, last = encoder.layer
    for layer in layers:
        hidden = layer(hidden, mask)
    return _first_places(last, hidden, mask, places)


def _first_places(layer: Any, hidden: Tensor, mask: Tensor | None, places: int) -> Tensor:
    """`BertLayer` for the first places alone: their queries, everyone's keys and values."""
    block, asked = layer.attention.self, hidden[:, :places]
    query, key, value = (
        part(x).unflatten(-1, (block.num_attention_heads, -1)).transpose(1, 2)
        for part, x in ((block.query, asked), (block.key, hidden), (block.value, hidden))
    )
    if mask is not None and mask.shape[-2] > 1:
        mask = mask[..., :places, :]
    dropout = block.dropout.p if layer.training else 0.0
    attention = AttentionInterface()[block.config._attn_implementation]
    gathered, _ = attention(block, query, key, value, mask, dropout=dropout, scaling=block.scaling, is_causal=False)
    attended = layer.attention.output(gathered.flatten(2), asked)
    out: Tensor = layer.feed_forward_chunk(attended)
    return out
