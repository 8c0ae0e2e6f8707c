"""Layers that a model keeps from every method."""

import torch
from torch import nn

from segquant.core.other_weights import other_weights
from segquant.core.plain_linears import keep_out, kept_because, linear_layers


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2)
    )


def test_marked_layers_are_no_layers_and_are_listed_with_their_reason() -> None:
    net = _net()
    assert keep_out(net, {"1": "a whole block", "*.1": "too late", "2": "the last"}) == {
        "1": 2,
        "*.1": 0,
        "2": 1,
    }
    assert list(linear_layers(net)) == ["0"]
    reasons = {name: other.reason for name, other in other_weights(net).items()}
    assert reasons == {
        "1.0": "model.keep: 1 (a whole block)",
        "1.1": "model.keep: 1 (a whole block)",
        "2": "model.keep: 2 (the last)",
    }


def test_a_mark_survives_a_copy_and_changes_no_output() -> None:
    import copy

    net, x = _net(), torch.randn(2, 4)
    before = net(x)
    keep_out(net, {"0": "why"})
    assert torch.equal(net(x), before)
    assert kept_because(copy.deepcopy(net)[0]) == "model.keep: 0 (why)"
