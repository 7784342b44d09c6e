"""The CPU kernels as Python calls them: tensors in, tensors out, through the C interface.

A call costs about 2 µs and lets other Python threads run. Shapes are checked here; the kernels
believe them.
"""

import ctypes
import math
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from octavo.kernels.cpu import types
from octavo.kernels.cpu.types import Format, ScaleType
from octavo.kernels.reference_weights import QuantizedWeight

ISAS = ("amx", "avx512", "avx2", "portable")

_ALIGNMENT = 64
_HUGE_BYTES = 2**21
_PEAK_PASSES, _PEAK_S = 5, 0.05
_PART_TOKENS = 256  # no part of a step has fewer unless it is the whole: batch_parts.inl


_PLAIN = {torch.float32: Format.F32, torch.bfloat16: Format.BF16}
# By bits, and by the type of the inputs.
_QUANTIZED = {
    (8, torch.bfloat16): Format.INT8,
    (4, torch.bfloat16): Format.INT4,
    (8, torch.float32): Format.INT8_F32,
    (4, torch.float32): Format.INT4_F32,
    (8, torch.int8): Format.W8A8,
    (4, torch.int8): Format.W4A8,
}
_SCALES = {
    torch.float32: ScaleType.F32,
    torch.bfloat16: ScaleType.BF16,
    torch.float16: ScaleType.F16,
}


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight [out, in] and its bias as the kernels read them; `matrix` points into `held`.

    num_bytes: what one product reads of it
    """

    matrix: types.Matrix
    held: tuple[Tensor, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Phases:
    """What one `forward` went into. Of a large step, which is computed in parts, all parts.

    ranges: name, begin and end in ns of time.perf_counter_ns, as the first thread saw them; they
        lie side by side
    spent_ns: by name, of all threads together; where threads share a core the first one's ranges
        alone would misplace time among neighbours
    waited_ns: the part of that in which they waited for each other
    """

    ranges: list[tuple[str, int, int]]
    spent_ns: dict[str, int]
    waited_ns: dict[str, int]


class Library:
    """One instruction set's kernels and the threads that run them. One thread at a time may call
    it: what calls need of memory they share."""

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
        self._logits = torch.empty(0)
        self._phase_names = _phase_names(self._c, self._isa)
        self.is_timed = False  # whether `forward` keeps its times for `take_phases`
        self._timed: _Timeline | None = None

    def __del__(self) -> None:
        if getattr(self, "_team", None):
            self._c.octavo_team_delete(self._team)
            self._team = None

    def pack(
        self,
        weight: Tensor | QuantizedWeight,
        dtype: torch.dtype,
        bias: Tensor | None = None,
        *,
        is_gated: bool = False,
    ) -> PackedLinear:
        """weight [out, in], plain ones float32 or bfloat16; bias [out] or None. `dtype` is what
        inputs are rounded to, if they are not quantized. Of a gated weight the upper half are
        gates, the lower ups, and the product is act(gate) · up."""
        if isinstance(weight, QuantizedWeight):
            inputs = torch.int8 if weight.quantized_activations else dtype
            stored, scales = weight.stored.contiguous(), weight.scales.contiguous()
            return self._pack(
                stored, _QUANTIZED[weight.bits, inputs], scales, weight.group_size or 0, bias,
                is_gated,
            )  # fmt: skip
        return self._pack(weight.contiguous(), _PLAIN[weight.dtype], None, 0, bias, is_gated)

    def _pack(
        self,
        weight: Tensor,
        format: Format,
        scales: Tensor | None,
        group_size: int,
        bias: Tensor | None,
        is_gated: bool,
    ) -> PackedLinear:
        outputs, inputs = weight.shape
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

        def part(dtype: torch.dtype, rows: int) -> int:
            held.append(_aligned(rows * num_panels * 32 * dtype.itemsize, _ALIGNMENT))
            return held[-1].data_ptr()

        if scales is not None:
            matrix.scale_type = _SCALES[scales.dtype]
            packed.scales = part(scales.dtype, groups)
        if format in (Format.W8A8, Format.W4A8):
            packed.sums = part(torch.int32, groups)
        if bias is not None:
            bias = bias.float().contiguous()
            packed.bias = part(torch.float32, 1)
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

    def paged_attention(
        self,
        query: Tensor,
        kv: types.KVLayer,
        batch: types.Batch,
        scale: float,
        *,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """query [T, H, D] → [T, H, D] of its type; see kernels.reference_kv.paged_attention. A
        float32 query is computed with in float32 throughout."""
        rows = query.float().contiguous()
        out = torch.empty_like(rows)
        attention = types.Attention(
            num_heads=query.shape[1], window=window or 0, scale=scale, softcap=softcap or 0.0,
            exact=query.dtype is torch.float32,
        )  # fmt: skip
        pointers = [ctypes.byref(each) for each in (attention, kv, batch)]
        memory = self._c.octavo_attention_bytes(self._isa, self._team, *pointers)
        self._c.octavo_attention(
            self._isa, self._team, *pointers, rows.data_ptr(), out.data_ptr(), self.memory(memory)
        )
        return out.to(query.dtype)

    def store_kv(
        self, keys: Tensor, values: Tensor, kv: types.KVLayer, slot_mapping: Tensor
    ) -> None:
        """keys, values [T, G, D]; see kernels.reference_kv.store_kv."""
        keys, values = keys.float().contiguous(), values.float().contiguous()
        slots = slot_mapping.contiguous()
        self._c.octavo_store_kv(
            self._isa, self._team, ctypes.byref(kv), slots.data_ptr(), len(slots),
            keys.data_ptr(), values.data_ptr(),
        )  # fmt: skip

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, N] float32; see kernels.reference.add_rms_norm."""
        assert x.dtype is residual.dtype is torch.float32
        assert x.is_contiguous() and residual.is_contiguous()
        weight, out = weight.float().contiguous(), torch.empty_like(x)
        self._c.octavo_add_rms_norm(
            self._isa, self._team, x.data_ptr(), residual.data_ptr(), weight.data_ptr(),
            len(x), x.shape[1], eps, out.data_ptr(),
        )  # fmt: skip
        return out, residual

    def greedy(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits [S, V] float32 → the most likely token [S] int64, whether the largest logit is
        finite and none is NaN [S] bool."""
        assert logits.is_contiguous() and logits.dtype is torch.float32
        tokens = torch.empty(len(logits), dtype=torch.int64)
        are_finite = torch.empty(len(logits), dtype=torch.bool)
        self._c.octavo_greedy(
            self._isa, self._team, logits.data_ptr(), len(logits), logits.shape[1],
            tokens.data_ptr(), are_finite.data_ptr(),
        )  # fmt: skip
        return tokens, are_finite

    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        uniform: Tensor,
    ) -> Tensor:
        """logits [S, V] float32 → one token for each row [S] int64; see kernels.reference.sample.
        Of a row that is not finite it is any."""
        assert logits.is_contiguous() and logits.dtype is torch.float32
        rows, vocabulary = logits.shape
        for name, tensor, dtype in (
            ("temperature", temperature, torch.float32), ("top_k", top_k, torch.int64),
            ("top_p", top_p, torch.float32), ("min_p", min_p, torch.float32),
            ("uniform", uniform, torch.float64),
        ):  # fmt: skip
            assert tensor.shape == (rows,) and tensor.is_contiguous(), (name, tensor.shape)
            assert tensor.dtype is dtype, (name, tensor.dtype)
        sampling = types.Sampling(
            temperature=temperature.data_ptr(), top_k=top_k.data_ptr(), top_p=top_p.data_ptr(),
            min_p=min_p.data_ptr(), uniform=uniform.data_ptr(),
        )  # fmt: skip
        tokens = torch.empty(rows, dtype=torch.int64)
        memory = self._c.octavo_sample_bytes(self._isa, self._team, vocabulary)
        self._c.octavo_sample(
            self._isa, self._team, logits.data_ptr(), rows, vocabulary, ctypes.byref(sampling),
            tokens.data_ptr(), self.memory(memory),
        )  # fmt: skip
        return tokens

    def forward(self, decoder: types.Decoder, batch: types.Batch, sample_indices: Tensor) -> Tensor:
        """One step of a decoder: logits of the tokens `sample_indices` [N], rising, [N, V]
        float32, valid until the next call: memory that is new in each step costs a page fault
        for every 4 KB."""
        shape = len(sample_indices), decoder.lm_head.outputs
        num_logits = math.prod(shape)
        if num_logits > len(self._logits):
            self._logits = self.buffer(num_logits * 4).view(torch.float32)
        logits = self._logits[:num_logits].view(shape)
        pointers = ctypes.byref(decoder), ctypes.byref(batch)
        memory = self._c.octavo_step_bytes(self._isa, self._team, *pointers)
        timeline = self._timeline(decoder, batch) if self.is_timed else None
        self._c.octavo_forward(
            self._isa, self._team, *pointers, sample_indices.data_ptr(), len(sample_indices),
            logits.data_ptr(), self.memory(memory),
            None if timeline is None else ctypes.byref(timeline.structure),
        )  # fmt: skip
        self._timed = timeline
        return logits

    def take_phases(self) -> Phases | None:
        """Of the latest `forward`, if that was timed, and once."""
        timed, self._timed = self._timed, None
        return None if timed is None else timed.phases(self._phase_names)

    def _timeline(self, decoder: types.Decoder, batch: types.Batch) -> "_Timeline":
        parts = batch.num_tokens // _PART_TOKENS + 1
        capacity = parts * (decoder.num_layers + 1) * (len(self._phase_names) + 1)
        return _Timeline(capacity, len(self._phase_names))

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

    def matrix_peak(self, kind: Literal["float32", "bfloat16", "int8"]) -> float:
        """FLOPs a second of all threads together at the products that inputs of `kind` take, with
        everything in registers: of some passes the best. A multiply-add is two."""
        number, rounds = ("float32", "bfloat16", "int8").index(kind), 1
        while True:
            begin_s = time.perf_counter()
            best = max(
                self._c.octavo_multiply_rate(self._isa, self._team, number, rounds)
                for _ in range(_PEAK_PASSES)
            )
            if time.perf_counter() - begin_s > _PEAK_S:
                return float(best)
            rounds *= 4


class _Timeline:
    """Memory for the times of one step."""

    def __init__(self, capacity: int, num_phases: int) -> None:
        self._marks = array("q", bytes(16 * capacity))
        self._spent, self._waited = (array("q", bytes(8 * num_phases)) for _ in range(2))
        self.structure = types.Timeline(
            marks=self._marks.buffer_info()[0], spent_ns=self._spent.buffer_info()[0],
            waited_ns=self._waited.buffer_info()[0], capacity=capacity,
        )  # fmt: skip

    def phases(self, names: Sequence[str]) -> Phases:
        count = self.structure.count
        assert count <= self.structure.capacity, (count, self.structure.capacity)
        ranges, began_ns = [], 0
        for phase, ended_ns in zip(
            self._marks[0 : 2 * count : 2], self._marks[1 : 2 * count : 2], strict=True
        ):
            if phase >= 0:
                ranges.append((names[phase], began_ns, ended_ns))
            began_ns = ended_ns
        spent, waited = (
            dict(zip(names, each, strict=True)) for each in (self._spent, self._waited)
        )
        return Phases(ranges, spent, waited)


def _phase_names(library: ctypes.CDLL, isa: int) -> list[str]:
    names: list[str] = []
    while name := library.octavo_phase_name(isa, len(names)):
        names.append(name.decode())
    return names


def _aligned(num_bytes: int, alignment: int) -> Tensor:
    raw = torch.empty(num_bytes + alignment, dtype=torch.uint8)
    begin = -raw.data_ptr() % alignment
    return raw[begin : begin + num_bytes]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Argument and result types; what is not said here returns an int."""
    p, i, n, f = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
    size, text, real = ctypes.c_size_t, ctypes.c_char_p, ctypes.c_double
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
        ("sample_bytes", size, (i, p, n)),
        ("sample", None, (i, p, p, i, n, p, p, p)),
        ("step_bytes", size, (i, p, p, p)),
        ("forward", None, (i, p, p, p, p, i, p, p, p)),
        ("read_seconds", real, (i, p, p, n)),
        ("multiply_rate", real, (i, p, i, n)),
        ("phase_name", text, (i, i)),
    ):
        function = getattr(library, f"octavo_{name}")
        function.restype, function.argtypes = result, arguments
    for index, structure in enumerate(types.STRUCTURES):
        assert library.octavo_size_of(index) == ctypes.sizeof(structure), structure
    return library
