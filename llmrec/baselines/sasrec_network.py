"""The SASRec network in torch: causal self-attention over the latest items, scores by dot product with the items.

Item sequences are right-aligned: the last item always stands at the last position, padding on the left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SASRecNetwork(nn.Module):
    """Item and position embeddings, `num_layers` pre-norm blocks, a last layer norm.

    Args:
        num_items: rows of the item embedding, which is input and output at once.
        embedding_size: width of everything.
        history_window: number of positions.
        num_layers: blocks.
        num_heads: attention heads; divides `embedding_size`.
        dropout: on the inputs and on both branches of a block (not on attention weights and the wide layer, where
            drawing the masks took a fifth of a CPU step).
    """

    def __init__(
        self, num_items: int, embedding_size: int, history_window: int, num_layers: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items, embedding_size)
        self.positions = nn.Parameter(torch.empty(history_window, embedding_size))
        self.blocks = nn.ModuleList(_Block(embedding_size, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embedding_size)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs: Tensor, real: Tensor) -> Tensor:
        """Hidden states (batch, window, embedding_size) that predict the item after each position.

        Args:
            inputs: (batch, window) int64 item indices, any valid index where padded.
            real: (batch, window) bool, False on padding.
        """
        window = inputs.shape[1]
        hidden = self.dropout(self.items(inputs) * self.items.embedding_dim**0.5 + self.positions[-window:])
        causal = torch.ones(window, window, dtype=torch.bool).tril()
        # A padded position sees itself only, so that no softmax runs over nothing.
        visible = causal & (real[:, None, :] | torch.eye(window, dtype=torch.bool))
        for block in self.blocks:
            hidden = block(hidden, visible)
        normed: Tensor = self.norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all items, (..., num_items)."""
        return hidden @ self.items.weight.T


class _Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        batch, window, width = hidden.shape
        mixed = self.queries_keys_values(self.attention_norm(hidden))
        queries, keys, values = mixed.view(batch, window, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        # Written out: torch's CPU kernel for scaled_dot_product_attention is slow for heads this small.
        weights = (queries @ keys.transpose(-1, -2)) * (width // self.num_heads) ** -0.5
        weights = functional.softmax(weights.masked_fill(~visible[:, None], float("-inf")), dim=-1)
        attended = (weights @ values).transpose(1, 2).reshape(batch, window, width)
        hidden = hidden + self.dropout(self.output(attended))
        result: Tensor = hidden + self.dropout(self.feed_forward(hidden))
        return result
