"""A model's matrix products and the element-wise passes between them: in torch alone, or compiled on this machine.

On a CPU each pass is a trip through memory, and torch makes several where one is enough. `Compiled` makes one, in loops
of ours (`fused.cpp`) that the user's C++ compiler builds in seconds, once: the library is kept in the cache. Where the
processor has AMX, products in bfloat16 are ours as well (`tiles.cpp`), with what follows them done on the way, so is
attention inside of texts (`attention.cpp`), and what training adds (`learning.cpp`), of which `learning_decoder.py`
makes its steps. It is built for training, and when a batch is large enough to be worth those seconds, so never for a
single query; a library that is there serves all. Where it cannot be built, and where torch records what gradients need,
which would miss what our loops write, `Eager` does the same work for the decoder, and BERT's modules do that of
`FrozenBert`; `epic-search doctor` says why.

Both write over what they are given where that saves a pass, and both may be called from any thread.

Shapes: T tokens, D width, H heads of width W, I width inside the MLP.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epic_search.encoder.attention import KeyValue, Packing, attend
from epic_search.encoder.backbone import Choice
from epic_search.encoder.tiles import WIDTH, Weight
from epic_search.encoder.weights import cache_home

HERE = Path(__file__).parent
SOURCES = [HERE / name for name in ("fused.cpp", "tiles.cpp", "learning.cpp", "attention.cpp")]
HEADERS = [HERE / "vectors.h"]
VARIABLE = "EPIC_SEARCH_COMPILE"
WORTH = 2048  # tokens of a batch for which a library is built
GRAIN = 32768  # numbers that are worth a thread, as torch has it
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
NOTHING, GELU, GATE = range(3)  # what follows a product
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, (T, 1, W / 2) each, contiguous."""


class Passes(Protocol):
    """What a decoder layer is made of."""

    def linear(self, states_TK: Tensor, weight: Weight) -> Tensor:
        """The layer's outputs, (T, N)."""

    def gated(self, states_TK: Tensor, weight: Weight) -> Tensor:
        """silu(gate) * up, (T, N / 2), from the outputs of a gated weight."""

    def norm(self, states_TD: Tensor, weight_D: Tensor, eps: float, *, added_TD: Tensor | None = None) -> Tensor:
        """The RMS norm (arXiv 1910.07467) of the states, to which `added_TD` is first added, in place."""

    def rotate(self, states_THW: Tensor, rotation: Rotation) -> Tensor:
        """Rotary position embeddings (arXiv 2104.09864): the halves of each head are the two coordinates turned."""

    def attend(
        self,
        query_QHW: Tensor,
        key_TGW: Tensor,
        value_TGW: Tensor,
        packing: Packing,
        *,
        scale: float | None = None,
        causal: bool = True,
        prefix: KeyValue | None = None,
        reads_BR: Tensor | None = None,
    ) -> Tensor:
        """`attend` of `attention.py`."""


class Eager:
    """In few passes of torch over the states, none of them in another precision."""

    def linear(self, states_TK: Tensor, weight: Weight) -> Tensor:
        return F.linear(states_TK, weight.plain_NK, weight.bias_N)

    def gated(self, states_TK: Tensor, weight: Weight) -> Tensor:
        return self.gate(self.linear(states_TK, weight))

    def norm(self, states_TD: Tensor, weight_D: Tensor, eps: float, *, added_TD: Tensor | None = None) -> Tensor:
        """Sums are float32. Rounding the scale of a state moves its length by less than rounding its numbers does."""
        if added_TD is not None:
            states_TD.add_(added_TD)
        squares = torch.linalg.vector_norm(states_TD, dim=-1, keepdim=True, dtype=torch.float32).square_()
        scale = squares.div_(states_TD.shape[-1]).add_(eps).rsqrt_()
        return (states_TD * scale.to(states_TD.dtype)).mul_(weight_D)

    def rotate(self, states_THW: Tensor, rotation: Rotation) -> Tensor:
        cos, sin = rotation
        first, second = states_THW.chunk(2, dim=-1)
        out_THW = torch.empty(states_THW.shape, dtype=states_THW.dtype, device=states_THW.device)
        out_first, out_second = out_THW.chunk(2, dim=-1)
        torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out_second).addcmul_(first, sin)
        return out_THW

    def gate(self, gate_up_TI: Tensor) -> Tensor:
        """silu(gate) * up, (T, I), from (T, 2 * I)."""
        gate_TI, up_TI = gate_up_TI.chunk(2, dim=-1)
        return F.silu(gate_TI).mul_(up_TI)

    attend = staticmethod(attend)


class Compiled:
    """One pass each, over tensors on the CPU in one of TYPES; numbers are float32 in between."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        signatures: dict[str, list[Any]] = {
            "norm": [pointer] * 4 + [size, size, ctypes.c_float, number],
            "rotate": [pointer, size, pointer, pointer, size, size, size, number],
            "gate": [pointer, pointer, size, size, number],
            "layer_norm": [pointer] * 6 + [size, size, ctypes.c_float, number],
        }
        self._functions = {}
        for name, arguments in signatures.items():
            for dtype, suffix in TYPES.items():
                function = library[f"{name}_{suffix}"]
                function.argtypes, function.restype = arguments, None
                self._functions[name, dtype] = function
        self._multiply = None
        if hasattr(library, "tiles_allowed") and library.tiles_allowed():  # it is not there where AMX is not
            self._multiply = library.multiply_tiles
            self._multiply.argtypes, self._multiply.restype = [pointer] * 5 + [size] * 3 + [number] * 2, None
            self._attend = library.attend_texts
            rows: list[Any] = [*[pointer, size] * 2, pointer, pointer, size, size]
            self._attend.argtypes = [*rows, pointer, pointer, pointer, ctypes.c_float, *[size] * 4, number]
            self._attend.restype = None

    @property
    def has_tiles(self) -> bool:
        """Whether products in bfloat16 are ours."""
        return self._multiply is not None

    def linear(self, states_TK: Tensor, weight: Weight) -> Tensor:
        out_TN = self._product(states_TK, weight, NOTHING)
        return F.linear(states_TK, weight.plain_NK, weight.bias_N) if out_TN is None else out_TN

    def gelu(self, states_TK: Tensor, weight: Weight) -> Tensor:
        """GELU (arXiv 1606.08415) of the layer's outputs, as exact as torch's."""
        out_TN = self._product(states_TK, weight, GELU)
        return F.gelu(F.linear(states_TK, weight.plain_NK, weight.bias_N)) if out_TN is None else out_TN

    def gated(self, states_TK: Tensor, weight: Weight) -> Tensor:
        out_TI = self._product(states_TK, weight, GATE)
        if out_TI is None:
            return self.gate(F.linear(states_TK, weight.plain_NK, weight.bias_N))
        return out_TI

    def _product(self, states_TK: Tensor, weight: Weight, then: int) -> Tensor | None:
        """None where torch's is to be taken."""
        if self._multiply is None or not weight.fits(states_TK):
            return None
        T, K = states_TK.shape
        N = len(weight.plain_NK)
        assert weight.plain_NK.shape[1] == K and weight.is_gated == (then == GATE), (K, weight.plain_NK.shape, then)
        out = states_TK.new_empty(T, N // 2 if weight.is_gated else N)
        inputs = (states_TK.contiguous(), weight.packed, weight.packed_bias_N, weight.scales_N)
        pointers = [None if x is None else x.data_ptr() for x in (out, *inputs)]
        self._multiply(*pointers, T, K, N // WIDTH, then, torch.get_num_threads())
        return out

    def norm(self, states_TD: Tensor, weight_D: Tensor, eps: float, *, added_TD: Tensor | None = None) -> Tensor:
        assert states_TD.dtype == weight_D.dtype, (states_TD.dtype, weight_D.dtype)
        assert states_TD.is_contiguous() and (added_TD is None or added_TD.is_contiguous()), states_TD.stride()
        out_TD, added = torch.empty_like(states_TD), None if added_TD is None else added_TD.data_ptr()
        pointers = out_TD.data_ptr(), states_TD.data_ptr(), added, weight_D.data_ptr()
        self._functions["norm", states_TD.dtype](*pointers, *states_TD.shape, eps, _threads(states_TD))
        return out_TD

    def rotate(self, states_THW: Tensor, rotation: Rotation) -> Tensor:
        T, H, W = states_THW.shape
        assert states_THW.stride()[1:] == (W, 1), states_THW.stride()
        for x in rotation:
            assert x.shape == (T, 1, W // 2) and x.dtype == states_THW.dtype and x.is_contiguous(), (x, states_THW)
        cos, sin = (x.data_ptr() for x in rotation)
        sizes = T, H, W // 2, _threads(states_THW)
        self._functions["rotate", states_THW.dtype](states_THW.data_ptr(), states_THW.stride(0), cos, sin, *sizes)
        return states_THW

    def gate(self, gate_up_TI: Tensor) -> Tensor:
        assert gate_up_TI.is_contiguous(), gate_up_TI.stride()
        T, both = gate_up_TI.shape
        out_TI = gate_up_TI.new_empty(T, both // 2)
        pointers = out_TI.data_ptr(), gate_up_TI.data_ptr()
        self._functions["gate", gate_up_TI.dtype](*pointers, T, both // 2, _threads(out_TI))
        return out_TI

    def attend(
        self,
        query_QHW: Tensor,
        key_TGW: Tensor,
        value_TGW: Tensor,
        packing: Packing,
        *,
        scale: float | None = None,
        causal: bool = True,
        prefix: KeyValue | None = None,
        reads_BR: Tensor | None = None,
    ) -> Tensor:
        """`attend`; inside of texts on tiles, where these hold the heads."""
        Q, H, W = query_QHW.shape
        if not self.has_tiles or prefix is not None or query_QHW.dtype != torch.bfloat16 or W % WIDTH:
            tensors = query_QHW, key_TGW, value_TGW
            return attend(*tensors, packing, scale=scale, causal=causal, prefix=prefix, reads_BR=reads_BR)
        for x in (query_QHW, key_TGW, value_TGW):
            assert x.stride()[1:] == (W, 1) and x.dtype == torch.bfloat16, (x.stride(), x.dtype)
        asking, seen = packing.asking(reads_BR, causal=causal)
        out_QHW = query_QHW.new_empty(Q, H, W)
        rows = query_QHW.data_ptr(), query_QHW.stride(0), key_TGW.data_ptr(), value_TGW.data_ptr()
        places = key_TGW.stride(0), value_TGW.stride(0), asking.data_ptr(), packing.starts.data_ptr(), seen.data_ptr()
        sizes = len(packing.lengths), H, key_TGW.shape[1], W, max(_threads(query_QHW), _threads(key_TGW))
        self._attend(out_QHW.data_ptr(), out_QHW.stride(0), *rows, *places, W**-0.5 if scale is None else scale, *sizes)
        return out_QHW

    def layer_norm(
        self, states_TD: Tensor, norm: nn.LayerNorm, *, added_TD: Tensor, bias_D: Tensor | None = None
    ) -> Tensor:
        """Of the sum of all three."""
        inputs = states_TD, added_TD, bias_D, norm.weight, norm.bias
        T, D = states_TD.shape
        for x, shape in zip(inputs, ((T, D), (T, D), (D,), (D,), (D,)), strict=True):
            fits = x is None or (x.shape == shape and x.dtype == states_TD.dtype and x.is_contiguous())
            assert fits, (x, shape, states_TD.dtype)
        out_TD = torch.empty_like(states_TD)
        pointers = [None if x is None else x.data_ptr() for x in (out_TD, *inputs)]
        self._functions["layer_norm", states_TD.dtype](*pointers, T, D, norm.eps, _threads(states_TD))
        return out_TD


def _threads(states: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), states.numel() // GRAIN))


EAGER = Eager()
_built: dict[Path, Compiled | str] = {}  # or why there is none
_building = Lock()


def choose_passes(tokens_TD: Tensor) -> Passes:
    """What a batch of tokens goes through a decoder with."""
    return compiled_for(tokens_TD, tokens=len(tokens_TD)) or EAGER


def compiled_for(states: Tensor, *, tokens: int) -> Compiled | None:
    """The compiled passes, where so many tokens as states like these may go through them."""
    if states.device.type != "cpu" or states.dtype not in TYPES or os.environ.get(VARIABLE) == "off":
        return None
    if torch.is_grad_enabled() or states.requires_grad:
        return None
    found = compiled(build=tokens >= WORTH)
    return found if isinstance(found, Compiled) else None


def passes_choice(device: torch.device) -> tuple[Choice, bool]:
    """What large batches are encoded with on this device, and whether compiled passes are missed, for want of a build.

    What is to be built is built.
    """
    if device.type != "cpu":
        return Choice("torch's own", "compiled ones are for a CPU"), False
    if os.environ.get(VARIABLE) == "off":
        return Choice("torch's own", f"{VARIABLE}=off"), False
    found = compiled(build=True)
    if isinstance(found, Compiled):
        products = ", products on AMX tiles" if found.has_tiles else ""
        return Choice("compiled", f"one trip through memory each{products}; {library_path()}"), False
    return Choice("torch's own", f"{found}"), True


def tiles_on(device: torch.device) -> Compiled | str:
    """Compiled passes with products on tiles, or why there are none on this device. What is to be built is built."""
    choice, _ = passes_choice(device)
    found = compiled(build=False)
    if choice.value != "compiled" or not isinstance(found, Compiled):
        return choice.reason
    return found if found.has_tiles else "this processor, or its system, has no AMX"


def compiled(*, build: bool) -> Compiled | str | None:
    """The compiled passes, or why they cannot be had; None where they are not built, and not to be built now."""
    path = library_path()
    if path not in _built and (build or path.is_file()):
        with _building:
            if path not in _built:
                _built[path] = _load(path)
    return _built.get(path)


def library_path() -> Path:
    """Where the library is kept: named by where it runs, torch and processor, and by what it is built from."""
    return cache_home() / "compiled" / f"{_key(torch.__version__, platform.machine(), _processor())}-{_version()}.so"


@cache
def _version() -> str:
    return _key(str(FLAGS), *(source.read_text(encoding="utf-8") for source in (*SOURCES, *HEADERS)))


@cache
def _key(*about: str) -> str:
    return hashlib.sha256("\0".join(about).encode()).hexdigest()[:12]


@cache
def _processor() -> str:
    """What the processor can do: a library that is built for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _load(path: Path) -> Compiled | str:
    if not path.is_file() and (problem := _build(path)):
        return problem
    try:
        return Compiled(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded: {error}"


def _build(path: Path) -> str | None:
    """Build the library; the file appears whole or not at all. Returns what is wrong, if anything is.

    Those that other versions of ours have built for the same torch and processor are removed.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or [n for n in ("g++", "c++") if shutil.which(n)][:1]
    if not compiler:
        return "there is no C++ compiler"
    native = ("-march=native", "-mprefer-vector-width=512") if platform.machine() == "x86_64" else ("-mcpu=native",)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            out = Path(scratch) / path.name
            command = [*compiler, *FLAGS, *native, *map(str, SOURCES), "-o", str(out), "-Wl,--as-needed", *_openmp()]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            out.replace(path)
        for older in set(path.parent.glob(f"{path.stem.partition('-')[0]}-{'?' * len(_version())}.so")) - {path}:
            older.unlink(missing_ok=True)
    except subprocess.CalledProcessError as error:
        return f"{compiler[0]} failed: {(error.stderr.strip().splitlines() or ['it does not say why'])[-1]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{compiler[0]} failed: {error}"
    return None


def _openmp() -> list[str]:
    """The OpenMP library that torch brings along, so that its threads are used, not others beside them."""
    package = Path(torch.__file__).parent
    found = [*package.glob("lib/libgomp*.so*"), *package.parent.glob("torch.libs/libgomp*.so*")]
    return [str(path) for path in found[:1]]
