"""A small GPT over bytes: the model of the reference trainer."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """The model's size. Parameters: about 12 * layers * width ** 2."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 128
    dropout: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Plain values, for a log line."""
        return asdict(self)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each normalised before and added to what comes in."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.norm_attention = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.projection = nn.Linear(shape.width, shape.width, bias=False)
        self.norm_mlp = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, 4 * shape.width, bias=False)
        self.down = nn.Linear(4 * shape.width, shape.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, time, width) to the same."""
        batch, time, width = x.shape
        heads = (batch, time, self.heads, width // self.heads)
        q, k, v = self.qkv(self.norm_attention(x)).split(width, dim=2)
        attended = functional.scaled_dot_product_attention(
            q.view(heads).transpose(1, 2),
            k.view(heads).transpose(1, 2),
            v.view(heads).transpose(1, 2),
            is_causal=True,
            dropout_p=self.dropout if self.training else 0.0,
        )
        attended = self.projection(attended.transpose(1, 2).reshape(batch, time, width))
        x = x + functional.dropout(attended, self.dropout, self.training)
        grown = self.down(functional.gelu(self.up(self.norm_mlp(x))))
        return x + functional.dropout(grown, self.dropout, self.training)


class GPT(nn.Module):
    """Predicts the next byte at every position."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if shape.width % shape.heads:
            raise ValueError(f"width {shape.width} is no multiple of {shape.heads} heads")
        self.shape = shape
        self.bytes = nn.Embedding(VOCABULARY, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, VOCABULARY, bias=False)
        self.head.weight = self.bytes.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                residual = name.endswith(("projection.weight", "down.weight"))
                deviation = 0.02 / (2 * shape.layers) ** 0.5 if residual else 0.02
                nn.init.normal_(parameter, std=deviation)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, time) bytes to logits (batch, time, 256), or with targets `y` to the loss."""
        position = torch.arange(x.shape[1], device=x.device)
        hidden = self.bytes(x) + self.positions(position)
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.head(self.norm(hidden))
        if y is None:
            return logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), y.flatten())

    @torch.no_grad()
    def sample(self, prompt: bytes, length: int, generator: torch.Generator) -> bytes:
        """Continue `prompt` by `length` bytes. Draws from `generator` (CPU) alone."""
        device = self.bytes.weight.device
        text = list(prompt or b"\n")
        for _ in range(length):
            window = torch.tensor([text[-self.shape.context :]], device=device)
            chances = self(window)[0, -1].float().softmax(0).cpu()
            text.append(int(torch.multinomial(chances, 1, generator=generator)))
        return bytes(text)
