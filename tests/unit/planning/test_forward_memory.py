"""The most bytes that live at once in a forward, counted without memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.planning.forward_memory import forward_bytes, live_bytes


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.wide(x))  # type: ignore[no-any-return]


def test_of_a_chain_its_widest_place_counts_and_no_weight() -> None:
    with torch.device("meta"):
        chain = Chain()
    given = {"x": torch.zeros(8, 64)}
    assert forward_bytes(chain, given) == 4 * 8 * (64 + 256 + 64)
    assert forward_bytes(chain.bfloat16(), {"x": given["x"].bfloat16()}) == 2 * 8 * (64 + 256 + 64)


def test_what_dies_is_not_counted_twice() -> None:
    def call() -> None:
        x = torch.zeros(1000, device="meta")
        for _ in range(10):
            x = x + 1

    assert live_bytes(call) == 2 * 4000


def test_views_are_no_memory() -> None:
    assert live_bytes(lambda: torch.zeros(1000, device="meta").view(10, 100).T) == 4000


def test_attention_holds_no_scores() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    x = torch.zeros(1, 2, 4096, 8)
    assert forward_bytes(Attention(), {"x": x}) == 2 * x.nbytes
