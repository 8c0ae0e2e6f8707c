"""The Triton kernels compiled ahead of time for six GPUs, without one: instruction and resources.

Each is compiled as it is launched (arguments' types, alignment, constants), and what the
assembler says of registers, spills and shared memory is held against the device's limits.
"""

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from segquant.kernels import tiles  # noqa: E402
from segquant.kernels.tiles import Tile  # noqa: E402
from segquant.kernels.triton_launch import rank_tile, segment_constants  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
KIB = 1024
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
TENSOR_MEMORY_COLUMNS = 512
# What int8 goes through on each: a warp's instruction, a warp group's, the tensor memory's.
WARP, GROUP, TENSOR = "mma.sync.aligned.m16n8k32", "wgmma.mma_async", "tcgen05.mma"
INSTRUCTION = {80: WARP, 86: WARP, 89: WARP, 90: GROUP, 100: TENSOR, 120: WARP}
ALL = tuple(SHARED_LIMIT)
WIDE_LOAD = re.compile(r"cp\.async\.cg\.shared\.global|ld\.global\S*\.v4\.b32")  # 16 bytes
POINTERS = {
    "codes": "*i8",
    "weight": "*i8",
    "output": "*bf16",
    "scale": "*fp32",
    "weight_scale": "*fp32",
    "shift": "*fp32",
    "column_sum": "*fp32",
    "bias": "*fp32",
    "inner": "*bf16",
    "up": "*bf16",
    "tiles": "*i32",
    "next_inverse": "*fp32",
    "x": "*bf16",
    "inverse": "*fp32",
    "zero": "*fp32",
}


def build(kernel: Any, constants: dict[str, Any], tile: Tile, sm: int, **types: str) -> Any:
    numbers = dict.fromkeys(("rows", "num_m", "num_n"), "i32")
    signature = {
        name: types.get(name) or POINTERS.get(name) or numbers.get(name) or "constexpr"
        for name in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(
        source,
        target=GPUTarget("cuda", sm, 32),
        options={
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            "enable_fp_fusion": False,
        },
    )


def product(tile: Tile, sm: int, planes: tuple[int, ...] = (1,), **more: Any) -> Any:
    from segquant.kernels.triton_product import product_kernel

    types = {k: more.pop(k) for k in list(more) if k in POINTERS}
    segments = more.pop("segments", (3072,))
    constants: dict[str, Any] = {
        "N": 3072,
        "K": sum(segments),
        **segment_constants(segments, planes),
        "WIDE": max(planes),
        "TOKEN": False,
        "HAS_SHIFT": False,
        "HAS_BIAS": True,
        "RANK": 0,
        "RANK_TILE": 0,
        "HAS_TILES": False,
        "PRODUCER": 0,
        "OUT": -1,
        "BM": tile.bm,
        "BN": tile.bn,
        "BK": tile.bk,
        "WIDTH": tiles.L2_WIDTH,
    }
    return build(product_kernel, constants | more, tile, sm, **types)


def four_bit(tile: Tile, sm: int, planes: int = 1) -> Any:
    from segquant.kernels.triton_w4 import product_w4_kernel

    constants = {
        "N": 3072,
        "HALF": 1536,
        "PLANES": planes,
        "TOKEN": True,
        "HAS_SHIFT": False,
        "HAS_BIAS": True,
        "RANK": 0,
        "RANK_TILE": 0,
        "HAS_TILES": False,
        "BM": tile.bm,
        "BN": tile.bn,
        "BK": tile.bk,
        "WIDTH": tiles.L2_WIDTH,
    }
    return build(product_w4_kernel, constants, tile, sm)


def small(sm: int, *, dual: bool) -> Any:
    from segquant.kernels.triton_encode import small_kernel

    constants = {
        "N": 18432,
        "K": 3072,
        "DUAL": dual,
        "BITS": 8,
        "HAS_BIAS": True,
        "PRODUCER": 1,
        "BN": tiles.SMALL_COLUMNS,
        "BK": tiles.small_depth(dual=dual),
    }
    tile = Tile(bm=16, bn=32, bk=0, warps=tiles.SMALL_WARPS, stages=tiles.SMALL_STAGES)
    return build(small_kernel, constants, tile, sm)


def encoder(sm: int, *, code: int, producer: int) -> Any:
    from segquant.kernels.triton_encode import encode_kernel

    constants = {
        "FEATURES": 6144,
        "SIZE": 6144,
        "CODE": code,
        "BITS": 8,
        "PRODUCER": producer,
        "BM": tiles.ENCODE_ROWS,
        "BK": tiles.ENCODE_COLUMNS,
    }
    tile = Tile(bm=8, bn=512, bk=0, warps=tiles.ENCODE_WARPS, stages=1)
    return build(encode_kernel, constants, tile, sm)


@cache
def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack and shared bytes of a compiled kernel, as the assembler counted them."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    text = subprocess.run(
        [str(CUOBJDUMP), "--dump-resource-usage", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def check(compiled: Any, sm: int, folder: Path) -> None:
    found = resources(compiled.asm["cubin"], folder)
    assert found["STACK"] == 0, found
    assert found["LOCAL"] == 0, found
    assert found["REG"] <= 255
    assert compiled.metadata.shared <= SHARED_LIMIT[sm] * KIB
    assert (getattr(compiled.metadata, "tmem_size", 0) or 0) <= TENSOR_MEMORY_COLUMNS


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("sm", ALL)
@pytest.mark.parametrize("planes", [1, 2])
def test_the_product_uses_the_matrix_unit_without_spills(
    planes: int, sm: int, tmp_path: Path
) -> None:
    tile = tiles.candidates(stacked=planes == 2, packed=False)[0]
    compiled = product(tile, sm, (planes,))
    assert INSTRUCTION[sm] in compiled.asm["ptx"]
    assert ".s8" in compiled.asm["ptx"] or "kind::i8" in compiled.asm["ptx"]
    check(compiled, sm, tmp_path)


def test_hopper_waits_for_every_integer_product(tmp_path: Path) -> None:
    """Triton pipelines wgmma for float sums alone: recorded here, so that a change is noticed."""
    ptx = product(tiles.LARGE, 90).asm["ptx"]
    waits = set(re.findall(r"wgmma\.wait_group\.sync\.aligned (\d+)", ptx))
    assert waits == {"0"}, "int8 wgmma is asynchronous now: measure the tiles again"


EXTRAS: dict[str, dict[str, Any]] = {
    "flux proj_out: dual on the second interval": {"planes": (1, 2), "segments": (3072, 12288)},
    "low rank, steps by token": {
        "planes": (2,), "RANK": 32, "RANK_TILE": rank_tile(32), "TOKEN": True
    },
    "segments of the output, shifted": {"HAS_TILES": True, "HAS_SHIFT": True, "TOKEN": True},
    "gelu and the next layer's dual codes": {"PRODUCER": 3, "OUT": 2, "output": "*i8"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sm"),
    [*((name, 90) for name in EXTRAS), *zip(EXTRAS, (80, 86, 100, 100), strict=True)],
)
def test_every_epilogue_without_spills(name: str, sm: int, tmp_path: Path) -> None:
    more = dict(EXTRAS[name])
    stacked, shifted = 2 in more.get("planes", (1,)), "HAS_SHIFT" in more
    tile = tiles.candidates(stacked=stacked, packed=False, shifted=shifted)[0]
    compiled = product(tile, sm, **more)
    assert INSTRUCTION[sm] in compiled.asm["ptx"]
    check(compiled, sm, tmp_path)


@pytest.mark.parametrize(
    "tile", [*tiles.SINGLE[1:], *tiles.STACKED[1:]], ids=lambda t: f"{t.bm}x{t.bn}"
)
def test_smaller_tiles_without_spills(tile: Tile, tmp_path: Path) -> None:
    planes = (2,) if tile in tiles.STACKED else (1,)
    check(product(tile, 86, planes), 86, tmp_path)


@pytest.mark.parametrize(("planes", "sm"), [*((1, sm) for sm in ALL), (2, 80), (2, 90), (2, 100)])
def test_four_bit_weights_unpack_without_spills(planes: int, sm: int, tmp_path: Path) -> None:
    compiled = four_bit(tiles.candidates(stacked=planes == 2, packed=True)[0], sm, planes)
    assert ".s8" in compiled.asm["ptx"] or "kind::i8" in compiled.asm["ptx"]
    check(compiled, sm, tmp_path)


@pytest.mark.parametrize(("dual", "sm"), [*((True, sm) for sm in ALL), (False, 90)])
def test_few_rows_read_weights_in_wide_loads(dual: bool, sm: int, tmp_path: Path) -> None:
    compiled = small(sm, dual=dual)
    assert "mma" in compiled.asm["ptx"]
    assert WIDE_LOAD.search(compiled.asm["ptx"])
    check(compiled, sm, tmp_path)


@pytest.mark.parametrize(("code", "producer", "sm"), [(0, 0, 90), (2, 3, 80), (2, 3, 100)])
def test_encoding_loads_sixteen_bytes(code: int, producer: int, sm: int, tmp_path: Path) -> None:
    compiled = encoder(sm, code=code, producer=producer)
    assert WIDE_LOAD.search(compiled.asm["ptx"])
    check(compiled, sm, tmp_path)


class _NoDevice:
    """Stands in for the driver of a Hopper GPU, up to the launch."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Kernels go through Triton's own binding and compilation for sm_90, and stop there."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    made: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        made.append(kernel)
        return kernel

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", _NoDevice())
    return made


def test_launches_bind_and_compile_as_they_are_written(hopper: list[Any]) -> None:
    """The arguments of every launch, from real layers: all but the launch itself."""
    from segquant.kernels import ActivationCode, PackedLinear, Producer, Steps
    from segquant.kernels import triton_launch as launch
    from segquant.kernels.encode import encode
    from segquant.kernels.packed import low_rank_inner
    from segquant.kernels.product import CodedProduct
    from tests.unit.kernels.cases import inputs, layer

    def multiply(x: Any, packed: PackedLinear, **more: Any) -> None:
        encoded = encode(x, plan=packed.plan, tensors=packed.tensors)
        job = CodedProduct.of(encoded, packed, inner_GTR=low_rank_inner(x, packed))
        made = launch.product(job, dtype=packed.dtype, **more)
        assert made.shape[0] in (40, 40 * 128, 80 * 128)

    code, x = ActivationCode, inputs("gelu", 40, 128)
    cut = {"codes": [code.symmetric, code.dual], "segments": (32, 96), "output": (48, 80)}
    multiply(x, layer(x, 128, codes=[code.dual]))
    multiply(x, layer(x, 128, **cut, rank=8))
    multiply(x, layer(x, 128, codes=[code.zero_point], steps=Steps.token))
    multiply(x, layer(x, 128, codes=[code.dual], weight_bits=4, output=(48, 80)))
    inverse = inputs("positive", 2, 128)
    more = {"producer": "gelu_tanh", "next_code": "dual", "next_inverse_PN": inverse}
    multiply(x, layer(x, 128, codes=[code.symmetric]), **more)
    packed = layer(x, 128, **cut)
    launch.encode(
        x,
        packed.tensors.inverse_GPI,
        packed.tensors.zero_GI,
        segments=(32, 96),
        codes="symmetric,dual",
        num_bits=8,
        producer=Producer.gelu.name,
    )
    packed = layer(x[:3], 128, codes=[code.dual])
    assert packed.tensors.inverse_GPI is not None
    assert packed.tensors.scale_GSP is not None
    launch.small(
        x[:3],
        packed.weight,
        packed.tensors.inverse_GPI[0],
        packed.tensors.scale_GSP[0, 0],
        packed.weight_scale_SN[0],
        packed.bias_N,
        producer="silu",
        num_bits=8,
        dtype=packed.dtype,
    )
    assert len(hopper) == 5 + 2 * 2 + 1
    assert all("sm_90" in kernel.asm["ptx"] for kernel in hopper)
