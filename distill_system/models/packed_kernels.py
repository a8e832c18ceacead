"""Products with packed weights on a CPU, by compiled code (packed_kernels.cpp) that decodes them on the way into registers.

One row of an input against a matrix is bound by how many bytes of weights come in: packed ones are 1/4 (8 bits) to 1/32 (1 bit) of float32's. With many
rows arithmetic is the bound: with vectors of 16 numbers (AVX-512) the code is still ahead, with shorter ones a tile of weights is decoded for more than
`FEW` rows, and torch multiplies.

The code is compiled on first use, by the compiler that torch's extensions are built with, for this machine's instructions, and kept in the cache
(`DISTILL_CACHE`) under a digest of all that it hangs on. Without a compiler, or where its products differ from `Grid.decode`'s, there are no kernels: one
warning, and plain torch does the work. `DISTILL_PACKED_KERNELS=0` asks for that.

Exactness: float32 sums of float32 products, in an order that hangs neither on threads nor on the other rows. Measured against float64: within 1e-6 of the
largest output.

Shapes: X any leading dimensions, N rows of an input, O outputs, I inputs; B bytes of a packed row; G groups.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_system.files import TEMPORARY
from distill_system.models.grid import Granularity, Grid
from distill_system.models.packing import MOST, pack_rows, row_bytes
from distill_system.packages import cache_folder, locked

log = logging.getLogger("distill_system.models")
Product: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]

SWITCH = "DISTILL_PACKED_KERNELS"
SOURCE = Path(__file__).with_suffix(".cpp")
COMMON = ("-O3", "-std=c++17", "-fPIC", "-w")
# Tried one after the other. OpenMP is compiled in but not linked: torch brings the one that both are to share.
FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ())
PATIENCE_S = 180  # for the compiler
FEW = 32  # rows of an input that are multiplied without decoding a tile first, where vectors are shorter than `WIDE`
WIDE = 16
TILE = 2**18  # weights that are decoded at the same time, where there are more
GRAIN = 2**16  # multiplications that are worth another thread


class Layout(ctypes.Structure):
    """`Matrix` in packed_kernels.cpp."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("packed", "scale", "zero", "levels")) + tuple(
        (name, ctypes.c_int64)
        for name in ("outputs", "inputs", "row_bytes", "count", "bits", "groups", "row_step", "zero_step")
    )


def kernel(packed_OB: Tensor, inputs: int, count: int, grid: Grid, granularity: Granularity) -> Product | None:
    """What multiplies float32 inputs on the CPU with a packed matrix: `(x_XI, bias_O or None) -> y_XO`, without gradients; None where nothing does.

    It reads the tensors where they are, at each call: after they were moved, make another.

    Args:
        packed_OB: codes as `packing.pack_rows` packs them.
        inputs: I.
        count: levels.
        grid: its tensors as float32.
        granularity: which weights share a grid.

    Raises:
        ValueError: tensors of other shapes than these say; the message is a clause.
    """
    library = _library()
    tensors = {"packed": packed_OB, **grid.tensors()}
    if library is None or any(tensor.device.type != "cpu" for tensor in tensors.values()):
        return None
    if any(tensor.dtype != torch.float32 for tensor in grid.tensors().values()):
        return None
    return Kernel(library, packed_OB, inputs, count, grid, granularity)


def kernel_for(module: Any) -> Callable[[Tensor], Tensor] | None:
    """The kernel of a `packed_modules.PackedLinear`, with its bias; inputs that it can't take go the module's plain way."""
    on_grid = module.matrix.on_grid
    product = kernel(module.packed, module.inputs, module.count, on_grid.grid, on_grid.granularity)
    if product is None:
        return None

    def call(x_XI: Tensor) -> Tensor:
        bias_O = module.bias
        fits = x_XI.dtype == torch.float32 and x_XI.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if not fits or (bias_O is not None and bias_O.dtype != torch.float32):
            plain: Tensor = module.plain(x_XI)
            return plain
        return product(x_XI, bias_O)

    return call


class Kernel:
    """A packed matrix, as the compiled code sees it."""

    def __init__(
        self,
        library: ctypes.CDLL,
        packed_OB: Tensor,
        inputs: int,
        count: int,
        grid: Grid,
        granularity: Granularity,
    ) -> None:
        outputs = packed_OB.shape[0]
        groups = granularity.shape(outputs, inputs)[0]
        in_row = inputs // granularity.size if granularity.kind == "group" else 1
        _check(packed_OB, inputs, count, grid, groups)
        self.inputs, self.outputs, self.library = inputs, outputs, library
        self.wide = library.lanes() >= WIDE
        # Held, because the layout only points at them.
        self.tensors = {"packed": packed_OB.contiguous()} | {k: t.contiguous() for k, t in grid.tensors().items()}
        step = {"tensor": 0, "row": 1, "group": in_row}[granularity.kind]
        zeros = 0 if grid.zero_G1 is None or len(grid.zero_G1) == 1 else 1
        bits = 0 if count == 3 else (count - 1).bit_length()
        self.layout = Layout(
            *(self.tensors[k].data_ptr() if k in self.tensors else None for k in ("packed", "scale", "zero", "levels")),
            outputs, inputs, packed_OB.shape[1], count, bits, in_row, step, zeros,
        )  # fmt: skip
        self.address = ctypes.addressof(self.layout)

    def __call__(self, x_XI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        if x_XI.shape[-1] != self.inputs or x_XI.dtype != torch.float32 or x_XI.device.type != "cpu":
            raise ValueError(
                f"an input of shape {list(x_XI.shape)}, {x_XI.dtype} on {x_XI.device}, must be float32 [..., {self.inputs}] on the CPU"
            )
        x_NI = x_XI.detach().reshape(-1, self.inputs).contiguous()
        rows = len(x_NI)
        if (rows > FEW and not self.wide) or not rows or not self.outputs or not self.inputs:
            return self._by_tiles(x_NI, bias_O).view(*x_XI.shape[:-1], self.outputs)
        y_XO = x_NI.new_empty(*x_XI.shape[:-1], self.outputs)
        bias_O = None if bias_O is None else bias_O.contiguous()
        threads = max(1, min(torch.get_num_threads(), rows * self.outputs * self.inputs // GRAIN))
        bias = None if bias_O is None else bias_O.data_ptr()
        self.library.linear(self.address, x_NI.data_ptr(), rows, bias, y_XO.data_ptr(), threads)
        return y_XO

    def decode(self, first: int, last: int) -> Tensor:
        """Weights `[last - first, I]` of outputs from `first` to `last`: those of `Grid.decode`, to the bit."""
        weight_OI = torch.empty(last - first, self.inputs)
        if weight_OI.numel():
            threads = max(1, min(torch.get_num_threads(), weight_OI.numel() // GRAIN))
            self.library.decode(self.address, first, last, weight_OI.data_ptr(), threads)
        return weight_OI

    def _by_tiles(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        y_NO = x_NI.new_empty(len(x_NI), self.outputs)
        bias_O = None if bias_O is None else bias_O.detach()
        step = max(1, TILE // max(1, self.inputs))
        for first in range(0, self.outputs, step):
            last = min(first + step, self.outputs)
            part = None if bias_O is None else bias_O[first:last]
            y_NO[:, first:last] = F.linear(x_NI, self.decode(first, last), part)
        return y_NO


def _check(packed_OB: Tensor, inputs: int, count: int, grid: Grid, groups: int) -> None:
    """What the compiled code reads must be there."""
    if not 2 <= count <= MOST:
        raise ValueError(f"{count} levels, must be 2 to {MOST}")
    if packed_OB.dtype != torch.uint8 or packed_OB.dim() != 2 or packed_OB.shape[1] != row_bytes(inputs, count):
        wanted = f"must be torch.uint8 of {row_bytes(inputs, count)} bytes a row"
        raise ValueError(f"codes of {packed_OB.dtype}, {list(packed_OB.shape)}, {wanted}")
    if grid.levels_GL is not None:
        shapes = [(tuple(grid.levels_GL.shape), {(groups, count)})]
    else:
        assert grid.scale_G1 is not None
        assert grid.zero_G1 is not None
        shapes = [(tuple(grid.scale_G1.shape), {(groups, 1)}), (tuple(grid.zero_G1.shape), {(groups, 1), (1, 1)})]
    for found, allowed in shapes:
        if found not in allowed:
            raise ValueError(f"a grid of shape {list(found)}, must be {' or '.join(str(list(a)) for a in allowed)}")


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled code, proved; None, after a warning that says why, where there is none."""
    if os.environ.get(SWITCH, "1") == "0":
        return None
    why = "no way to compile"
    for flags in FLAGS:
        try:
            library = ctypes.CDLL(str(compiled(flags)))
            for function, takes in (("linear", "pPnppn"), ("decode", "pnnpn")):
                kinds = {"n": ctypes.c_int64}
                getattr(library, function).argtypes = [kinds.get(kind, ctypes.c_void_p) for kind in takes]
                getattr(library, function).restype = None
            library.lanes.restype = ctypes.c_int64
            _prove(library)
            return library
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            why = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    log.warning("packed weights are multiplied the slow way, since their kernels can't be had: %s", why)
    return None


def compiled(flags: tuple[str, ...], source: Path = SOURCE) -> Path:
    """The shared library; compiled unless it is there, by one process while others wait.

    Raises:
        RuntimeError: it can't be compiled. OSError: there is no compiler, or no place for the library.
    """
    compiler = os.environ.get("CXX", "c++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    told = [source.read_text(encoding="utf-8"), *COMMON, *flags, version.stdout, *_processor()]
    target = (
        cache_folder() / "kernels" / f"{source.stem}-{hashlib.sha256(chr(0).join(told).encode()).hexdigest()[:16]}.so"
    )
    if target.is_file():
        return target
    with locked(target.with_suffix(".lock")):
        if not target.is_file():  # else another process made it while this one waited
            with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{target.name}-", dir=target.parent) as folder:
                unlinked, made = Path(folder) / "made.o", Path(folder) / "made.so"
                _run([compiler, *COMMON, *flags, "-c", str(source), "-o", str(unlinked)])
                _run([compiler, "-shared", str(unlinked), "-o", str(made)])
                os.replace(made, target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["it said nothing"]
        raise RuntimeError(f"{command[0]} failed ({said[0].strip()})")


def _processor() -> list[str]:
    """What `-march=native` hangs on: a cache may lie on a disk that different machines share."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return [platform.machine(), platform.processor(), flags]


def _prove(library: ctypes.CDLL) -> None:
    """Raises: RuntimeError: products of small matrices differ from what `Grid.decode` gives."""
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = 5, 129
    x_NI = torch.randn(3, inputs, generator=generator)
    for count in (2, 3, 4, 5, 16, 256):
        code_OI = torch.randint(0, count, (outputs, inputs), generator=generator, dtype=torch.uint8)
        grid = Grid(count, torch.rand(outputs, 1, generator=generator), torch.full((1, 1), (count - 1) / 2))
        product = Kernel(library, pack_rows(code_OI, count), inputs, count, grid, Granularity("row"))
        weight_OI = grid.decode(code_OI)
        same = torch.equal(product.decode(0, outputs), weight_OI)
        if not same or not torch.allclose(product(x_NI), x_NI @ weight_OI.t(), rtol=1e-4, atol=1e-3 * count):
            raise RuntimeError(f"what was compiled multiplies {count} levels wrongly")
