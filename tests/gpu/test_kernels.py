"""The kernels on a GPU, against the exact product on the CPU: bits, graphs, compilation."""

from typing import Any

import pytest
import torch
from torch import nn

from segquant.kernels import ActivationCode, Device, KernelLinear, Steps, Way, choose
from segquant.kernels.door import encode_input
from segquant.kernels.encode import Producer, blocks_of, encode
from segquant.kernels.fuse import NEXT_CODES, FusedFeedForward
from segquant.kernels.packed import PackedLinear
from tests.unit.kernels.cases import CODES, inputs, layer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
CODE = ActivationCode
LARGE = ((300, 272, 512), (129, 144, 1040), (64, 4608, 256))  # rows, out, in


def both(x: torch.Tensor, packed: PackedLinear) -> tuple[torch.Tensor, torch.Tensor]:
    """On the CPU and on the GPU."""
    module = KernelLinear(packed)
    on_cpu = module(x)
    return on_cpu, module.cuda()(x.cuda()).cpu()


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("steps", list(Steps))
@pytest.mark.parametrize("code", CODES)
def test_every_code_gives_the_bits_of_the_cpu(
    code: CODE, steps: Steps, shape: tuple[int, int, int]
) -> None:
    rows, out, features = shape
    x = inputs("gelu", rows, features)
    cpu, gpu = both(x, layer(x, out, codes=[code], steps=steps))
    assert torch.equal(cpu, gpu)


@pytest.mark.parametrize("kind", ["positive", "negative", "extreme", "zero"])
def test_every_sign(kind: str) -> None:
    x = inputs(kind, 100, 256)
    for code in CODES:
        cpu, gpu = both(x, layer(x, 96, codes=[code]))
        assert torch.equal(cpu, gpu)


@pytest.mark.parametrize("more", [{}, {"weight_bits": 4}, {"rank": 8}, {"smooth": True}])
def test_segments_and_branches(more: dict[str, Any]) -> None:
    x = torch.cat([inputs("normal", 200, 96), inputs("gelu", 200, 160, seed=1)], 1)
    cut = {"codes": [CODE.symmetric, CODE.dual], "segments": (96, 160), "output": (70, 122)}
    if "weight_bits" in more:
        cut = {"codes": [CODE.dual], "output": (70, 122)}
    cpu, gpu = both(x, layer(x, 192, **cut, **more))
    if more.get("rank"):
        torch.testing.assert_close(cpu, gpu, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(cpu, gpu)


@pytest.mark.parametrize("rows", [1, 2, 16])
@pytest.mark.parametrize("code", [CODE.symmetric, CODE.dual])
def test_few_rows(rows: int, code: CODE) -> None:
    x = inputs("gelu", rows, 768)
    packed = layer(x, 1000, codes=[code])
    device = Device.of(torch.device("cuda", 0))
    assert choose(packed, rows=rows, device=device).way is Way.triton_small
    cpu, gpu = both(x, packed)
    assert torch.equal(cpu, gpu)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = inputs("gelu", 100, 256).to(dtype)
    packed = layer(x.float(), 96, codes=[CODE.dual], dtype=dtype)
    cpu, gpu = both(x, packed)
    assert torch.equal(cpu, gpu)


@pytest.mark.parametrize("code", CODES)
def test_codes_agree_bit_for_bit(code: CODE) -> None:
    x = inputs("gelu", 100, 520)
    x[3, 5], x[7, 9] = float("nan"), float("inf")
    packed = layer(x.clamp(-10, 10), 96, codes=[code], smooth=True)
    plain = encode(x, plan=packed.plan, tensors=packed.tensors).codes
    on_gpu = KernelLinear(packed).cuda().packed
    fused = encode_input(x.cuda(), on_gpu, Producer.none).codes.cpu()
    planes = [blocks_of(c, plan=packed.plan, rows=100)[0][0] for c in (plain, fused)]
    assert all(torch.equal(a, b) for a, b in zip(*planes, strict=True))


def network() -> tuple[nn.Module, torch.Tensor]:
    x = inputs("normal", 64, 128)
    first = layer(x, 256, codes=[CODE.symmetric])
    hidden = torch.nn.functional.gelu(KernelLinear(first)(x))
    second = layer(hidden, 96, codes=[CODE.dual])
    return nn.Sequential(KernelLinear(first), nn.GELU(), KernelLinear(second)).cuda(), x.cuda()


@pytest.mark.parametrize("code", NEXT_CODES)
def test_a_joined_feed_forward(code: CODE) -> None:
    """Codes differ by one where the two libraries' GELU falls on either side of a tie."""
    x = inputs("normal", 200, 256)
    first = layer(x, 512, codes=[CODE.symmetric])
    hidden = torch.nn.functional.gelu(KernelLinear(first)(x), approximate="tanh")
    second = layer(hidden, 96, codes=[code], smooth=True)
    module = FusedFeedForward(
        KernelLinear(first), KernelLinear(second), producer=Producer.gelu_tanh
    )
    cpu = module(x)
    torch.testing.assert_close(module.cuda()(x.cuda()).cpu(), cpu, rtol=0, atol=1e-2 * cpu.std())


def test_a_cuda_graph_replays() -> None:
    """No allocation outside the graph's pool and no waiting for the device."""
    model, x = network()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = model(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(x)
    output.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(output, expected)


def test_nothing_waits_for_the_device() -> None:
    model, x = network()
    expected = model(x)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = model(x)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert torch.equal(found, expected)


def test_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    model, x = network()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-3)
