"""Products with weights: those of torch as they are, and weight-only quantized ones.

One kernel computes the transpose, out [out, T] = weight [out, in] · x [in, T]: so the weights are
the operand that Hopper's tensor cores take from registers, where they have just been unpacked (see
`weights`), and rows of x are the dimension that may be as small as 16 without idle lanes. Products
with the stored integers are exact and summed in float32; the scale of a group meets its sum.

Few rows (to `FEW_ROWS`) read every weight once and do little with it: the inputs are split among
programs so that enough loads are in flight, each writes partial sums in float32, and a second
kernel adds them in the order of the inputs. How many splits there are depends on the weight's shape
and the device only. More rows are an ordinary tiled product, in which a program goes through all
inputs and tiles that share weights or rows run side by side, for the L2 cache.

Of one tile size a row gets the same bits alone and in any batch: the rows of a tile never meet.
Tiles differ by the number of rows (to 16, 32, 64, and more), and with them the instructions that
sum up 16 inputs at a time; that these give the same bits is NVIDIA's affair. Between few rows and
many the sums are split otherwise, so that the last bits of float32 differ.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu import tuning
from octavo.kernels.gpu.weights import PLANE, GpuLinear, pack

__all__ = ["FEW_ROWS", "WARM_UP_ROWS", "GpuLinear", "linear", "pack"]

FEW_ROWS = 64
# A split is no shorter than this many steps, of 64 or 128 inputs each: so many loads are in flight
# in any case, and partial sums stay few beside the weights.
_LEAST_STEPS = 4
# The rows that tile sizes are chosen with, for as many and fewer; more than the last take its too.
_SAMPLE_ROWS = (16, 256, 2048)
# A product of each of these numbers of rows compiles and chooses all that any other number needs.
WARM_UP_ROWS = (16, 32, FEW_ROWS, *_SAMPLE_ROWS[1:])

_FEW = [
    dict(BLOCK_N=128, programs_per_sm=2, num_warps=4, num_stages=4),
    dict(BLOCK_N=128, programs_per_sm=4, num_warps=4, num_stages=4),
    dict(BLOCK_N=64, programs_per_sm=4, num_warps=4, num_stages=5),
    dict(BLOCK_N=64, programs_per_sm=8, num_warps=4, num_stages=4),
    dict(BLOCK_N=256, programs_per_sm=2, num_warps=8, num_stages=3),
]
_MANY = [
    dict(BLOCK_N=128, BLOCK_T=128, num_warps=8, num_stages=3),
    dict(BLOCK_N=128, BLOCK_T=128, num_warps=8, num_stages=4),
    dict(BLOCK_N=128, BLOCK_T=64, num_warps=4, num_stages=4),
    dict(BLOCK_N=64, BLOCK_T=128, num_warps=4, num_stages=3),
    dict(BLOCK_N=64, BLOCK_T=64, num_warps=4, num_stages=4),
]
# A group's sum takes as many registers as the whole one, which leaves no room for this.
_MANY_PER_ROW = [*_MANY, dict(BLOCK_N=128, BLOCK_T=256, num_warps=8, num_stages=3)]
# float32 is multiplied without tensor cores, for tests and small models.
_WIDE_FEW = [dict(BLOCK_N=64, programs_per_sm=2, num_warps=4, num_stages=2)]
_WIDE_MANY = [dict(BLOCK_N=64, BLOCK_T=64, num_warps=8, num_stages=2)]


def linear(x: Tensor, weight: Tensor | GpuLinear, bias: Tensor | None = None) -> Tensor:
    """x [T, in], weight [out, in], bias [out] → [T, out] of x's type."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    assert x.dim() == 2 and x.shape[1] == weight.inputs, (x.shape, weight.inputs)
    assert x.dtype is weight.dtype, (x.dtype, weight.dtype)
    assert bias is None or (bias.shape == (weight.outputs,) and bias.is_contiguous())
    if len(x) == 0:
        return x.new_empty(0, weight.outputs)
    return _multiply(x.contiguous(), weight, bias, _config(len(x), weight))


def _config(rows: int, weight: GpuLinear) -> tuning.Config:
    is_wide = weight.dtype is torch.float32
    if rows <= FEW_ROWS:
        sample, configs = _SAMPLE_ROWS[0], _WIDE_FEW if is_wide else _FEW
    else:
        sample = next((s for s in _SAMPLE_ROWS[1:] if rows <= s), _SAMPLE_ROWS[-1])
        configs = _WIDE_MANY if is_wide else _MANY if weight.group_size else _MANY_PER_ROW

    def run(config: tuning.Config) -> None:
        x = torch.zeros(sample, weight.inputs, dtype=weight.dtype, device=weight.words.device)
        _multiply(x, weight, None, config)

    dtype = str(weight.dtype).removeprefix("torch.")
    groups = f" groups {weight.group_size}" if weight.group_size else ""
    key = f"{weight.outputs}x{weight.inputs}{groups} {dtype} rows {sample}"
    return tuning.choose(
        f"linear{weight.bits}", key, configs, run, source=__file__, num_bytes=weight.num_bytes
    )


def _multiply(x: Tensor, weight: GpuLinear, bias: Tensor | None, config: tuning.Config) -> Tensor:
    """x [T, in] contiguous, T at least 1."""
    rows, outputs = len(x), weight.outputs
    out = x.new_empty(rows, outputs)
    num_steps = len(weight.words) // weight.units_per_step
    block_n = config["BLOCK_N"]
    num_blocks, num_warps = triton.cdiv(outputs, block_n), config["num_warps"]
    if rows <= FEW_ROWS:
        block_t = max(16, triton.next_power_of_2(rows))
        splits = _num_splits(num_blocks, num_steps, config["programs_per_sm"], x.device)
        if block_t == 64:  # so that a thread's sums do not outgrow its registers
            num_warps *= 2
    else:
        block_t, splits = config["BLOCK_T"], 1
    sums = out if splits == 1 else x.new_empty(splits, rows, outputs, dtype=torch.float32)
    steps = triton.cdiv(num_steps, splits)
    _product_kernel[num_blocks * triton.cdiv(rows, block_t), splits](
        x, weight.words, weight.scales, bias, sums,
        rows, outputs, weight.inputs, steps, num_steps,
        BITS=weight.bits, GROUP=weight.group_size or 0, UNITS=weight.units_per_step,
        IS_PADDED=weight.inputs % (PLANE * 16 // weight.bits * weight.units_per_step) != 0,
        IS_SPLIT=splits > 1, PLANE=PLANE, BLOCK_N=block_n, BLOCK_T=block_t,
        STAGES=config["num_stages"], num_warps=num_warps,
    )  # fmt: skip
    if splits > 1:
        block = 512
        _add_splits_kernel[rows, triton.cdiv(outputs, block)](
            sums, bias, out, outputs, rows, splits, BLOCK=block
        )
    return out


def _num_splits(num_blocks: int, num_steps: int, per_sm: int, device: torch.device) -> int:
    """Parts of the inputs, none empty, so that there are about `per_sm` programs for each of the
    device's processors."""
    wanted = max(1, min(per_sm * _num_sms(device) // num_blocks, num_steps // _LEAST_STEPS))
    return triton.cdiv(num_steps, triton.cdiv(num_steps, wanted))


def _num_sms(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 4  # the interpreter's


def _unpack_code(bits: int, plane: int, type: str) -> str:
    """PTX that takes two words, $1, and gives their weights of a plane, $0, in a 16 bit float.

    The bits of a weight become the mantissa's last ones of a power of two whose unit they are, from
    which an addition takes that power away: 128 of a bfloat16, 1024 of a float16. The first has
    room for 7 bits, so the sign of 8 bits is taken away with it: there it doubles the power, which
    is also right of a float16 if it is its eighth bit. All steps are exact. Kim et al., 2022,
    arXiv:2211.10017, and Frantar et al., 2024, arXiv:2408.11743.
    """
    power, one = {"bf16": (0x4300, 0x3F80), "f16": (0x6400, 0x3C00)}[type]
    masked = "lop3.b32 {to}, w, {mask:#x}, {power:#x}, 0xEA;".format  # (w & mask) | power

    def twice(half: int) -> int:
        return half << 16 | half

    def select(to: str, mask: int) -> str:
        return masked(to=to, mask=twice(mask), power=twice(power))

    shift = f".reg .b32 w, a, b, c; shr.u32 w, $1, {bits * plane};"
    if bits == 4:  # of stored + 8
        less = {"bf16": 0xC308, "f16": 0xE408}[type]
        steps = f"{select('a', 0xF)} mov.b32 b, {twice(one):#x}; mov.b32 c, {twice(less):#x};"
    else:
        steps = f"{select('a', 0x80)} mov.b32 b, {twice(one | 0x8000):#x}; {select('c', 0x7F)}"
    return f"{{ {shift} {steps} fma.rn.{type}x2 $0, a, b, c; }}"


# The interpreter has no assembler; the kernels' other branches say the same without it.
_HAS_PTX = tl.constexpr(not tuning.is_interpreted())
_BF16_4 = tl.constexpr(tuple(_unpack_code(4, plane, "bf16") for plane in range(4)))
_BF16_8 = tl.constexpr(tuple(_unpack_code(8, plane, "bf16") for plane in range(2)))
_F16_4 = tl.constexpr(tuple(_unpack_code(4, plane, "f16") for plane in range(4)))
_F16_8 = tl.constexpr(tuple(_unpack_code(8, plane, "f16") for plane in range(2)))


@triton.jit
def _unpack(words, plane: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr):
    """The stored weights of a plane as numbers of dtype. words int16."""
    if _HAS_PTX and dtype == tl.bfloat16:
        code: tl.constexpr = _BF16_4[plane] if BITS == 4 else _BF16_8[plane]
        return tl.inline_asm_elementwise(
            code, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    elif _HAS_PTX and dtype == tl.float16:
        code: tl.constexpr = _F16_4[plane] if BITS == 4 else _F16_8[plane]
        return tl.inline_asm_elementwise(
            code, "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2
        )
    elif BITS == 4:
        return ((words >> (4 * plane)) & 0xF).to(dtype) - 8
    else:
        return ((words << (8 - 8 * plane)) >> 8).to(dtype)


@triton.jit(do_not_specialize=["rows", "steps", "num_steps"])
def _product_kernel(
    x, words, scales, bias, out,
    rows, outputs, inputs, steps, num_steps,
    BITS: tl.constexpr, GROUP: tl.constexpr, UNITS: tl.constexpr, IS_PADDED: tl.constexpr,
    IS_SPLIT: tl.constexpr, PLANE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs and rows, split): its sums over `steps` steps, to out [T, outputs]
    or, if there are several splits, out [splits, T, outputs] float32."""
    PLANES: tl.constexpr = 16 // BITS
    # Tiles of 8 × all, row tiles first: what runs at a time shares weights and rows.
    num_t, num_n = tl.cdiv(rows, BLOCK_T), tl.cdiv(outputs, BLOCK_N)
    program, of_turn = tl.program_id(0), 8 * num_n
    first_t = program // of_turn * 8
    turn_t = tl.minimum(num_t - first_t, 8)
    t = (first_t + program % of_turn % turn_t) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = program % of_turn // turn_t * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    begin = split * steps
    end = tl.minimum(begin + steps, num_steps)

    in_t, in_n = t < rows, n < outputs
    p = tl.arange(0, PLANE)
    unit_words = tl.cast(outputs, tl.int64) * PLANE
    word_tile = words + n[:, None].to(tl.int64) * PLANE + p[None, :]
    x_tile = x + t[None, :].to(tl.int64) * inputs + p[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    if GROUP > 0:
        group = begin * (UNITS * PLANES * PLANE // GROUP)
        num_groups = num_steps * (UNITS * PLANES * PLANE // GROUP)
        scale_row = scales + group.to(tl.int64) * outputs + n
        scale = tl.load(scale_row, mask=in_n, other=0.0)
    for step in tl.range(begin, end, num_stages=STAGES):
        for unit in tl.static_range(UNITS):
            packed = tl.load(
                word_tile + (step * UNITS + unit) * unit_words, mask=in_n[:, None], other=0
            )
            for plane in tl.static_range(PLANES):
                k = ((step * UNITS + unit) * PLANES + plane) * PLANE
                in_x = in_t[None, :]
                if IS_PADDED:
                    in_x = in_x & (k + p < inputs)[:, None]
                rows_of_x = tl.load(x_tile + k, mask=in_x, other=0.0)
                weights = _unpack(packed, plane, BITS, x.dtype.element_ty)
                if GROUP == 0:
                    total = tl.dot(weights, rows_of_x, total, input_precision="ieee")
                else:
                    if (unit * PLANES + plane) * PLANE % GROUP == 0:
                        # A group begins; the next one's scale is on its way meanwhile.
                        group += 1
                        scale_row += outputs
                        next_scale = tl.load(scale_row, mask=in_n & (group < num_groups), other=0.0)
                        sums = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
                    sums = tl.dot(weights, rows_of_x, sums, input_precision="ieee")
                    if (unit * PLANES + plane + 1) * PLANE % GROUP == 0:
                        total += sums * scale.to(tl.float32)[:, None]
                        scale = next_scale
    if GROUP == 0:
        total *= tl.load(scales + n, mask=in_n, other=0.0)[:, None]
    if not IS_SPLIT and bias is not None:
        total += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[:, None]
    row = split.to(tl.int64) * rows + t
    place = out + row[None, :] * outputs + n[:, None]
    tl.store(place, total.to(out.dtype.element_ty), mask=in_n[:, None] & in_t[None, :])


@triton.jit(do_not_specialize=["rows", "splits"])
def _add_splits_kernel(sums, bias, out, outputs, rows, splits, BLOCK: tl.constexpr):
    """out [T, outputs] = the sum of sums [splits, T, outputs], the first one first, + bias."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_n = n < outputs
    split_sums = tl.cast(outputs, tl.int64) * rows
    sums_row = sums + row * outputs + n
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        total += tl.load(sums_row + split * split_sums, mask=in_n, other=0.0)
    if bias is not None:
        total += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)
    tl.store(out + row * outputs + n, total.to(out.dtype.element_ty), mask=in_n)
