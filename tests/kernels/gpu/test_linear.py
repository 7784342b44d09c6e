"""The GPU's products with quantized weights, against their statement in plain torch.

Run as a program it compiles the kernels for an NVIDIA H100, which needs no GPU.
"""

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from octavo.kernels.gpu import tuning
from octavo.kernels.gpu.linear import GpuLinear, linear, pack
from octavo.kernels.reference_weights import QuantizedWeight, linear_quantized, quantize_weight
from octavo.models.layers import LinearLoader
from octavo.quantization.weights import weight_format

gpu = import_module("octavo.kernels.gpu.linear")  # not its function of the same name
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's products are wrong in bfloat16.
DTYPES = [torch.float16, torch.float32, *([torch.bfloat16] if DEVICE == "cuda" else [])]
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).split(".")[1])
# bits, group size
FORMATS = [(4, 32), (4, 64), (4, 128), (4, None), (8, None), (8, 32), (8, 128)]
FORMAT = pytest.mark.parametrize("format", FORMATS, ids=str)


@pytest.fixture(autouse=True)
def first_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a GPU; `test_every_config` has the others."""
    monkeypatch.setattr(tuning, "choose", lambda name, key, configs, run, **more: configs[0])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_weight(format: tuple[int, int | None], out: int, width: int) -> QuantizedWeight:
    bits, group_size = format
    return quantize_weight(normal(out, width) / width**0.5, bits, group_size, False)


def make_rows(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """With what is no number behind the last one."""
    memory = torch.full((rows + 1, width), float("nan"))
    memory[:rows] = normal(rows, width, seed=rows)
    return memory.to(DEVICE, dtype)[:rows]


def check(got: Tensor, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> None:
    want = linear_quantized(x.cpu().float(), weight, None if bias is None else bias.cpu())
    assert got.dtype is x.dtype
    # Rounded once: half a unit of the last place. The float32 before has its own order of sums.
    rtol = torch.finfo(x.dtype).eps / 2
    torch.testing.assert_close(got.cpu().float(), want, rtol=rtol + 1e-6, atol=1e-5)


@FORMAT
@DTYPE
@pytest.mark.parametrize(
    ("rows", "out", "width"),
    [(1, 5, 384), (3, 130, 96), (16, 40, 1024), (17, 128, 640), (40, 33, 1152), (70, 150, 384)],
)
def test_products(
    format: tuple[int, int | None], dtype: torch.dtype, rows: int, out: int, width: int
) -> None:
    """Of outputs that fill no tile; of inputs that fill no unit of the packed form."""
    width = -(-width // (format[1] or 1)) * (format[1] or 1) if format[1] else width - 3
    weight, x = make_weight(format, out, width), make_rows(rows, width, dtype)
    bias = normal(out, seed=1).to(DEVICE, dtype) if rows % 2 else None
    check(linear(x, pack(weight, dtype, DEVICE), bias), x, weight, bias)


@pytest.mark.parametrize("scales", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("format", [(4, 64), (8, 128)], ids=str)
def test_scales_of_a_checkpoint(format: tuple[int, int], scales: torch.dtype) -> None:
    """Not numbers that bfloat16 has too."""
    own = make_weight(format, 40, 384)
    weight = replace(own, scales=(own.scales.float() * 1.003).to(scales))
    x = make_rows(5, 384, torch.float32)
    check(linear(x, pack(weight, torch.float32, DEVICE)), x, weight, None)


@pytest.mark.parametrize("rows", [16, 64, 130])
@pytest.mark.parametrize("format", [(4, 128), (8, None)], ids=str)
def test_every_config(format: tuple[int, int | None], rows: int) -> None:
    configs = gpu._FEW if rows <= gpu.FEW_ROWS else gpu._MANY_PER_ROW
    weight, x = make_weight(format, 140, 1024), make_rows(rows, 1024, torch.float16)
    packed, bias = pack(weight, torch.float16, DEVICE), normal(140, seed=1).to(DEVICE)
    for config in configs:
        check(gpu._multiply(x, packed, bias, config), x, weight, bias)


def test_many_tiles_of_rows() -> None:
    """More than the eight that are taken together, and those that are left over."""
    weight, x = make_weight((4, 32), 70, 32), make_rows(16 * 11 + 3, 32, torch.float16)
    config = dict(BLOCK_N=64, BLOCK_T=16, num_warps=4, num_stages=2)
    got = gpu._multiply(x, pack(weight, torch.float16, DEVICE), None, config)
    check(got, x, weight, None)


@pytest.mark.parametrize("format", [(4, 32), (4, 128), (8, None)], ids=str)
@DTYPE
def test_a_row_has_the_same_bits_alone(format: tuple[int, int | None], dtype: torch.dtype) -> None:
    """With its inputs split among programs."""
    packed = pack(make_weight(format, 70, 1024), dtype, DEVICE)
    steps = len(packed.words) // packed.units_per_step
    assert gpu._num_splits(1, steps, 2, torch.device(DEVICE)) > 1
    x = make_rows(16, 1024, dtype)
    together = linear(x, packed)
    for begin, end in ((0, 1), (7, 8), (15, 16), (3, 14)):
        assert torch.equal(linear(x[begin:end], packed), together[begin:end]), begin


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("rows", [5, 70])
def test_what_is_not_finite_stays_in_its_row(rows: int) -> None:
    packed = pack(make_weight((4, 64), 40, 576), torch.float32, DEVICE)
    x = make_rows(rows, 576, torch.float32)
    clean = linear(x, packed)
    x[3, 77], x[4, 9] = float("nan"), float("inf")
    got = linear(x, packed)
    assert not got[3:5].isfinite().any()
    kept = [row for row in range(rows) if row not in (3, 4)]
    assert torch.equal(got[kept], clean[kept])


@pytest.mark.parametrize("rows", [20, 70])
def test_rows_that_are_far_apart(rows: int) -> None:
    """Columns of a larger matrix are copied, not misread."""
    weight, wide = make_weight((8, None), 30, 128), make_rows(rows, 300, torch.float32)
    x = wide[:, 100:228]
    check(linear(x, pack(weight, torch.float32, DEVICE)), x, weight, None)


def test_no_rows() -> None:
    packed = pack(make_weight((4, 32), 5, 64), torch.float16, DEVICE)
    assert linear(make_rows(0, 64, torch.float16), packed).shape == (0, 5)


def test_plain_weights() -> None:
    x, weight, bias = normal(3, 8), normal(5, 8, seed=1), normal(5, seed=2)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def unpack(packed: GpuLinear) -> Tensor:
    """The stored numbers, [out, inputs with their padding]."""
    words, bits = packed.words.cpu().to(torch.int32), packed.bits
    planes = [words >> (bits * plane) & (2**bits - 1) for plane in range(16 // bits)]
    numbers = torch.stack(planes, 2).permute(1, 0, 2, 3).flatten(1)
    return numbers - 8 if bits == 4 else (numbers + 128) % 256 - 128


@FORMAT
def test_packed_form(format: tuple[int, int | None]) -> None:
    bits, group_size = format
    for width in (1024, 384 + (group_size or 5)):
        weight = make_weight(format, 37, width)
        packed = pack(weight, torch.bfloat16, DEVICE)
        numbers = unpack(packed)
        assert torch.equal(numbers[:, :width].to(torch.int8), weight.stored)
        assert not numbers[:, width:].any()
        groups = weight.scales.shape[1]
        assert torch.equal(packed.scales.cpu()[:groups], weight.scales.T)
        assert not packed.scales[groups:].any()
        assert (packed.outputs, packed.inputs, packed.bits) == (37, width, bits)
    assert pack(make_weight(format, 37, 1024), torch.float16, DEVICE).num_bytes == (
        37 * 1024 * bits // 8 + 37 * (1024 // group_size * 2 if group_size else 4)
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_activations_are_refused(bits: int) -> None:
    weight = quantize_weight(normal(4, 128), bits, 128, True)
    with pytest.raises(ValueError, match=rf"\(w{bits}a8\) are the CPU's"):
        pack(weight, torch.float16, DEVICE)


def test_splits_share_out_all_steps() -> None:
    for steps in range(1, 150):
        for blocks in (1, 3, 32, 1000):
            splits = gpu._num_splits(blocks, steps, 8, torch.device(DEVICE))
            assert (splits - 1) * -(-steps // splits) < steps, "an empty split"
            assert splits == 1 or steps // splits >= gpu._LEAST_STEPS - 1


def test_a_decoder_packs_by_it() -> None:
    """Quantized matrices, while others stay as they are, where the checkpoint has them."""
    plain, x = normal(20, 256) / 16, make_rows(3, 256, torch.float16)
    operators = SimpleNamespace(linear=linear, pack=pack)
    checkpoint = SimpleNamespace(dtype=torch.float16)
    for name, kind in (("int4", GpuLinear), ("float16", Tensor)):
        own = weight_format(name, 128, "float16")
        loader = LinearLoader(checkpoint, own, None, operators)
        loaded = loader.of("lm_head", plain.to(DEVICE, x.dtype))
        assert isinstance(loaded.weight, kind)
        assert loaded.num_bytes == own.num_bytes(20, 256)
        stored = loaded.weight.words if kind is GpuLinear else loaded.weight
        assert stored.device.type == DEVICE
        want = x.float() @ plain.to(DEVICE).T
        torch.testing.assert_close(loaded(x).float(), want, rtol=0.1, atol=0.4)


def run_ptx(code: str, words: Tensor, dtype: torch.dtype) -> Tensor:
    """What the few instructions of `_unpack_code` give for words [N] int16: [N] float32."""
    values: dict[str, Tensor | int] = {"$1": words.to(torch.int32) & 0xFFFF}

    def value(name: str) -> Tensor | int:
        if name not in values:
            number = int(name, 0)
            if number > 0xF:  # both halves of a register are told the same, or it is a bit mask
                assert number >> 16 == number & 0xFFFF, name
            values[name] = number & 0xFFFF
        return values[name]

    def as_float(of: Tensor | int) -> Tensor:
        bits = torch.as_tensor(of, dtype=torch.int32)
        return bits.to(torch.int16).view(dtype).double()

    for line in code.strip("{} ").split(";"):
        operation, _, rest = line.strip().partition(" ")
        operands = [each.strip() for each in rest.split(",")]
        if operation == "shr.u32":
            values[operands[0]] = value(operands[1]) >> int(operands[2])
        elif operation == "lop3.b32":
            assert operands[4] == "0xEA"  # (a & b) | c
            values[operands[0]] = value(operands[1]) & value(operands[2]) | value(operands[3])
        elif operation == "mov.b32":
            values[operands[0]] = value(operands[1])
        elif operation.startswith("fma"):
            assert operation == f"fma.rn.{'f16' if dtype is torch.float16 else 'bf16'}x2"
            a, b, c = (as_float(value(each)) for each in operands[1:])
            assert operands[0] == "$0"
            return (a * b + c).to(dtype).float()
        else:
            assert not operation or operation == ".reg", line
    raise AssertionError(code)


@pytest.mark.parametrize(("name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("bits", [4, 8])
def test_unpacking_in_assembly(bits: int, name: str, dtype: torch.dtype) -> None:
    """Of every word, which the interpreter does not run. The other word of a register would be
    shifted into this one's highest bits, which no mask reaches."""
    words = torch.arange(-(2**15), 2**15).to(torch.int16)
    for plane in range(16 // bits):
        field = words.to(torch.int32) >> (bits * plane) & (2**bits - 1)
        want = field - 8 if bits == 4 else (field + 128) % 256 - 128
        code = gpu._unpack_code(bits, plane, name)
        assert torch.equal(run_ptx(code, words, dtype), want.float()), plane


def test_compiles_for_hopper(tmp_path: Path) -> None:
    """Also what the interpreter cannot run; in a process that has not asked for it."""
    environ = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environ.update(PYTHONPATH=os.pathsep.join(sys.path), TRITON_CACHE_DIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, __file__], env=environ, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compiled") == 6


def compile_for_hopper() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def ptx(kernel: object, types: dict[str, str], numbers: dict[str, object], warps: int) -> str:
        names = kernel.arg_names
        signature = {name: types.get(name, "constexpr") for name in names}
        aligned = [i for i, n in enumerate(names) if n in types and n not in kernel_free]
        source = ASTSource(
            kernel, signature, numbers, {(i,): [["tt.divisibility", 16]] for i in aligned}
        )
        target = GPUTarget("cuda", 90, 32)
        return triton.compile(source, target=target, options=dict(num_warps=warps)).asm["ptx"]

    kernel_free = ("rows", "steps", "num_steps", "splits")
    integers = dict.fromkeys(("rows", "outputs", "inputs", "steps", "num_steps"), "i32")
    for bits, group, units, type, is_split, config in (
        (4, 128, 1, "bf16", True, {**gpu._FEW[0], "BLOCK_T": 16}),
        (4, 32, 1, "fp16", True, {**gpu._FEW[2], "BLOCK_T": 64}),
        (8, 128, 2, "bf16", False, gpu._MANY[0]),
        (8, 0, 1, "fp16", False, gpu._MANY_PER_ROW[-1]),
        (4, 64, 1, "fp32", True, {**gpu._WIDE_FEW[0], "BLOCK_T": 16}),
    ):
        types = {
            "x": f"*{type}", "words": "*i16", "scales": "*bf16" if group else "*fp32",
            "out": "*fp32" if is_split else f"*{type}", **integers,
        }  # fmt: skip
        if not is_split:
            types["bias"] = f"*{type}"
        numbers = dict(
            BITS=bits, GROUP=group, UNITS=units, IS_PADDED=False, IS_SPLIT=is_split,
            PLANE=gpu.PLANE, BLOCK_N=config["BLOCK_N"], BLOCK_T=config["BLOCK_T"],
            STAGES=config["num_stages"], **({"bias": None} if is_split else {}),
        )  # fmt: skip
        text = ptx(gpu._product_kernel, types, numbers, config["num_warps"])
        if type != "fp32":
            # Weights go from registers into the tensor cores, and nothing is copied word by word.
            assert re.search(r"wgmma.mma_async[^;]*\{[^}]*\}, *\{", text), (
                "weights not in registers"
            )
            assert f"fma.rn.{type.replace('fp', 'f')}x2" in text
            assert re.search(r"cp.async.cg.shared.global[^;]*0x10", text), "narrow copies"
        print("compiled", bits, group, type)
    types = {"sums": "*fp32", "bias": "*bf16", "out": "*bf16"}
    types |= dict.fromkeys(("outputs", "rows", "splits"), "i32")
    ptx(gpu._add_splits_kernel, types, {"BLOCK": 512}, 4)
    print("compiled the sum of splits")


if __name__ == "__main__":
    compile_for_hopper()
