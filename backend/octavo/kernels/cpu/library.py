"""The CPU kernels as Python calls them: tensors in, tensors out, through the C interface.

A call costs about 2 µs and lets other Python threads run. Shapes are checked here; the kernels
believe them.
"""

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo.kernels.cpu import types
from octavo.kernels.cpu.types import Format

log = logging.getLogger(__name__)

ISAS = ("amx", "avx512", "avx2", "portable")

_ALIGNMENT = 64
_HUGE_BYTES = 2**21


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight as the kernels read it; `matrix` points into `held`.

    bytes: of what one product reads: panels, scales, sums and bias.
    """

    matrix: types.Matrix
    held: tuple[Tensor, ...]
    num_bytes: int

    @property
    def out_features(self) -> int:
        return int(self.matrix.outputs)


class Library:
    """One instruction set's kernels and the threads that run them."""

    def __init__(
        self, path: Path, isa: str, num_threads: int, cpus: Sequence[int] | None = None
    ) -> None:
        """isa: one of ISAS, or "auto" for the fastest. cpus: the core of each thread.

        Raises ValueError if this processor lacks the instruction set.
        """
        self._c = _declare(ctypes.CDLL(str(path)))
        names = [self._c.octavo_isa_name(index) for index in range(len(ISAS))]
        available = {name.decode(): index for index, name in enumerate(names) if name}
        if isa != "auto" and isa not in available:
            raise ValueError(f"this processor has {', '.join(available)}")
        self.isa = next(iter(available)) if isa == "auto" else isa
        self.num_threads = num_threads
        self._isa = available[self.isa]
        cores = (ctypes.c_int32 * num_threads)(*cpus) if cpus else None
        self._team = self._c.octavo_team_new(num_threads, cores)
        self._memory = torch.empty(0, dtype=torch.uint8)

    def __del__(self) -> None:
        if getattr(self, "_team", None):
            self._c.octavo_team_delete(self._team)
            self._team = None

    def pack(
        self,
        weight: Tensor,
        format: Format,
        *,
        scales: Tensor | None = None,
        group_size: int = 0,
        bias: Tensor | None = None,
        is_gated: bool = False,
    ) -> PackedLinear:
        """weight [out, in]: float32, bfloat16, or int8 (of 4 bit formats −8 to 7). scales: float32
        [out], of grouped formats bfloat16 [out, in / group_size]. bias [out]. A gated weight has
        all gates before all ups, and its product is silu(gate) · up."""
        outputs, inputs = weight.shape
        expected = {Format.F32: torch.float32, Format.BF16: torch.bfloat16}.get(format, torch.int8)
        assert weight.dtype is expected, (weight.dtype, format)
        assert not group_size or inputs % group_size == 0, (inputs, group_size)
        unit = max(64, group_size)
        matrix = types.Matrix(
            format=format, outputs=outputs, inputs=inputs,
            padded_inputs=-(-inputs // unit) * unit, group_size=group_size, is_gated=is_gated,
        )  # fmt: skip
        by_reference = ctypes.byref(matrix)
        num_panels = self._c.octavo_num_panels(by_reference)
        panels = self.buffer(num_panels * self._c.octavo_panel_bytes(by_reference))
        held, packed = [panels], types.Packed(panels=panels.data_ptr())
        groups = matrix.padded_inputs // group_size if group_size else 1
        columns = num_panels * 32

        def part(dtype: torch.dtype, rows: int) -> int:
            held.append(torch.empty(rows, columns, dtype=dtype))
            return held[-1].data_ptr()

        if scales is not None:
            scales = scales.to(torch.bfloat16 if group_size else torch.float32).contiguous()
            packed.scales = part(scales.dtype, groups)
        if format in (Format.W8A8, Format.W4A8):
            packed.sums = part(torch.int32, groups)
        if bias is not None:
            bias = bias.float().contiguous()
            packed.bias = part(torch.float32, 1)
        weight = weight.contiguous()
        self._c.octavo_pack(
            self._team, by_reference, weight.data_ptr(), _pointer(scales), _pointer(bias),
            ctypes.byref(packed),
        )  # fmt: skip
        for name in ("panels", "scales", "sums", "bias"):
            setattr(matrix, name, getattr(packed, name))
        return PackedLinear(matrix, tuple(held), sum(t.nbytes for t in held))

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """x [T, in] → [T, out] of x's type, or [T, out / 2] of a gated weight."""
        matrix = packed.matrix
        rows = x.float().contiguous()
        assert x.dim() == 2 and x.shape[1] == matrix.inputs, (x.shape, matrix.inputs)
        width = matrix.outputs // 2 if matrix.is_gated else matrix.outputs
        out = torch.empty(len(x), width)
        memory = self._c.octavo_linear_bytes(self._isa, ctypes.byref(matrix), len(x))
        self._c.octavo_linear(
            self._isa, self._team, ctypes.byref(matrix), rows.data_ptr(), len(x), out.data_ptr(),
            self.memory(memory),
        )  # fmt: skip
        return out.to(x.dtype)

    def buffer(self, num_bytes: int) -> Tensor:
        """Memory that is not set yet, in huge pages where the system has them: reading through
        many small pages costs as much time again for looking them up."""
        if num_bytes < _HUGE_BYTES:
            return _aligned(num_bytes, _ALIGNMENT)
        whole = _aligned(num_bytes, _HUGE_BYTES)
        self._c.octavo_advise_huge(whole.data_ptr(), num_bytes)
        return whole

    def memory(self, num_bytes: int) -> int:
        """The address of memory that lasts until the next call; grows as it is needed."""
        if num_bytes > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)
            self._memory = self.buffer(num_bytes)
        return self._memory.data_ptr()

    def read_bandwidth(self, num_bytes: int, repeats: int = 8) -> float:
        """Bytes a second at which all threads together read through that much memory: the median
        of `repeats` passes."""
        data = self.buffer(num_bytes).zero_()
        seconds = sorted(
            self._c.octavo_read_seconds(self._isa, self._team, data.data_ptr(), num_bytes)
            for _ in range(repeats)
        )
        return float(num_bytes / seconds[repeats // 2])


def _aligned(num_bytes: int, alignment: int) -> Tensor:
    raw = torch.empty(num_bytes + alignment, dtype=torch.uint8)
    begin = -raw.data_ptr() % alignment
    return raw[begin : begin + num_bytes]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Argument and result types; what is not said here returns an int."""
    p, i, n, f = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
    size, text, seconds = ctypes.c_size_t, ctypes.c_char_p, ctypes.c_double
    for name, result, arguments in (
        ("isa_name", text, (i,)),
        ("size_of", size, (i,)),
        ("team_new", p, (i, p)),
        ("team_delete", None, (p,)),
        ("advise_huge", None, (p, size)),
        ("num_panels", i, (p,)),
        ("panel_bytes", size, (p,)),
        ("pack", None, (p, p, p, p, p, p)),
        ("linear_bytes", size, (i, p, i)),
        ("linear", None, (i, p, p, p, i, p, p)),
        ("attention_bytes", size, (i, p, p, p, p)),
        ("attention", None, (i, p, p, p, p, p, p, p)),
        ("store_kv", None, (i, p, p, p, i, p, p)),
        ("add_rms_norm", None, (i, p, p, p, p, i, i, f, p)),
        ("greedy", None, (i, p, p, i, n, p, p)),
        ("step_bytes", size, (i, p, p, p)),
        ("forward", None, (i, p, p, p, p, i, p, p)),
        ("read_seconds", seconds, (i, p, p, n)),
    ):
        function = getattr(library, f"octavo_{name}")
        function.restype, function.argtypes = result, arguments
    for index, structure in enumerate(types.STRUCTURES):
        assert library.octavo_size_of(index) == ctypes.sizeof(structure), structure
    return library
