"""What cannot be read is said, with the operation and the line, and nothing is guessed."""

import pytest
import torch
from torch import Tensor, nn

from experiments.zoo import build, example_inputs
from segquant.graph import GraphError, analyze


class _Routed(nn.Module):
    """Its control flow depends on what a linear computes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.expert = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1).flatten().tolist()  # the line to name
        return self.expert(x) if sum(chosen) >= 0 else x


class _Sorted(nn.Module):
    """Its sort cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.after = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(nn.functional.relu(self.before(x)).sort(dim=-1).values)


def test_error_names_the_line_and_the_ways_out() -> None:
    inputs = {"x": torch.ones(2, 3, 4)}
    with pytest.raises(GraphError, match=r"test_errors\.py:\d+ .*the line to name") as caught:
        analyze(_Routed(), inputs, frontend="record")
    assert "aten._local_scalar_dense" in str(caught.value)
    assert 'on_error="unsegmented"' in str(caught.value)
    observed = analyze(_Routed(), inputs)
    assert observed["expert"].calls == 1
    assert observed.frontend == "observe"
    assert "the line to name" in observed.fallback


def test_unsegmented_goes_on() -> None:
    without = _Routed().to("meta")
    graph = analyze(without, {"x": torch.ones(2, 3, 4)}, on_error="unsegmented")
    assert "the line to name" in graph.error
    assert [layer.output_segments for layer in graph.values()] == [(2,), (4,)]


def test_unknown_operations_are_reported_and_hide_what_is_behind_them() -> None:
    graph = analyze(_Sorted(), {"x": torch.ones(2, 3, 4)})
    assert graph.unknown_ops == {"sort": 1}
    assert not graph["after"].input_segments[0].one_sided


def test_wrong_requests_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="frontend='trace' is not one of auto, record"):
        analyze(_Sorted(), {}, frontend="trace")
    with pytest.raises(ValueError, match="on_error='skip' is not one of raise, unsegmented"):
        analyze(_Sorted(), {}, on_error="skip")
    with pytest.raises(ValueError, match=r"did you mean flux\.1-dev"):
        build("flux1-dev")
    with pytest.raises(ValueError, match="no example inputs are known for _Sorted"):
        example_inputs(_Sorted())
