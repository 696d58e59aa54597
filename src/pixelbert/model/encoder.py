"""The Transformer's layers, the last one only where somebody reads what comes out: Eq. (1) to (3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F


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
    if places is None or places >= hidden.shape[1] or encoder.config._attn_implementation != "sdpa":
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
    gathered = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=block.scaling)
    attended = layer.attention.output(gathered.transpose(1, 2).flatten(2), asked)
    out: Tensor = layer.feed_forward_chunk(attended)
    return out
