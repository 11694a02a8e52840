"""What a CPU user picks instead of torch, OpenVINO and ONNX Runtime in int8: peers of `encode.py`, where installed.

    pip install openvino==2026.4.1 nncf==3.4.0                                # the versions that were run
    pip install onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0

These are what sentence-transformers' backend="openvino" and backend="onnx" do, without sentence-transformers: they need
optimum-intel (2.2.0 wants transformers < 5.6) and optimum-onnx (0.1.0 wants transformers < 4.58), neither of which goes
with the transformers that epic-search needs. So the runtimes are called as those call them: transformers' own decoder,
exported with its mask and with both axes free, the same quantisers, and padded batches sorted by length.

    OpenVINO             in the precision of the others (INFERENCE_PRECISION_HINT)
    OpenVINO int8        matrices and what they are multiplied with in int8: nncf.quantize, with smoothing and scales
                         set on texts drawn anew (as in export_static_quantized_openvino_model); what stays a float is
                         in the precision of the others
    ONNX Runtime int8    quantize_dynamic: signed matrices, a scale a column, as with avx512_vnni in
                         export_dynamic_quantized_onnx_model; what stays a float is float32

Shapes: B texts, L tokens of the longest of them, E width.
"""

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGES = {"OpenVINO": ("openvino", "nncf"), "ONNX Runtime": ("onnx", "onnxscript", "onnxruntime")}

States = Callable[[Tensor, Tensor], Tensor]
"""From ids and mask, (B, L) int64 each, to the last states, (B, L, E)."""


class Padded:
    """Texts to vectors in batches sorted by length and padded, by any function from ids and mask to states."""

    def __init__(self, states: States, folder: Path, *, size: int, device: torch.device | None = None) -> None:
        self._states, self._size, self._device = states, size, device or torch.device("cpu")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> np.ndarray:
        rows = [torch.tensor(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(texts)]
        order = np.argsort([-len(row) for row in rows], kind="stable")
        found = []
        for batch in np.split(order, range(self._size, len(order), self._size)):
            lengths_B = torch.tensor([len(rows[i]) for i in batch], device=self._device)
            ids_BL = nn.utils.rnn.pad_sequence([rows[i] for i in batch], batch_first=True).to(self._device)
            mask_BL = (torch.arange(ids_BL.shape[1], device=self._device) < lengths_B[:, None]).long()
            states_BLE = self._states(ids_BL, mask_BL)
            last_BE = states_BLE[torch.arange(len(batch), device=self._device), lengths_B - 1].float()
            found.append(F.normalize(last_BE, dim=-1).cpu().numpy())
        return np.concatenate(found)[np.argsort(order)]


def runtimes(folder: Path, *, precision: torch.dtype, calibration: list[str]) -> dict[str, States]:
    """The decoder of a model folder in each runtime that is installed; `calibration`: texts that set int8 scales."""
    missing = {name: [p for p in packages if find_spec(p) is None] for name, packages in PACKAGES.items()}
    for name, packages in missing.items():
        if packages:
            print(f"{name} is left out; to compare with it: pip install {' '.join(packages)}", flush=True)
    found: dict[str, States] = {}
    if not missing["OpenVINO"]:
        found |= in_openvino(folder, precision=precision, calibration=calibration)
    if not missing["ONNX Runtime"]:
        found["ONNX Runtime int8"] = in_onnxruntime(folder)
    return found


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    return {p: version(p) for packages in PACKAGES.values() for p in packages if find_spec(p) is not None}


class Decoder(nn.Module):
    """A function of ids and mask alone, in float32, where quantisers start."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel

        super().__init__()
        self.model = AutoModel.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L, E)."""
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return found.last_hidden_state  # type: ignore[no-any-return]


def example() -> dict[str, Any]:
    """What an export traces the decoder with, and that both axes are free."""
    ids = torch.full((2, 7), 5)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    return {"args": (ids, torch.ones_like(ids)), "dynamic_shapes": (free, free)}


def in_openvino(folder: Path, *, precision: torch.dtype, calibration: list[str]) -> dict[str, States]:
    """As it is, and in int8."""
    import nncf
    import openvino

    graph = openvino.convert_model(torch.export.export(Decoder(folder), **example(), strict=False))
    encodings = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch_fast(calibration)
    samples = [(np.array([encoding.ids]), np.ones((1, len(encoding.ids)), dtype=np.int64)) for encoding in encodings]
    quantised = nncf.quantize(
        graph.clone(), nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
    )
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # a thread that is tied to a core waits for what else runs there
    }

    def states(model: Any) -> States:
        compiled = openvino.compile_model(model, "CPU", options)
        return lambda ids_BL, mask_BL: torch.from_numpy(
            compiled([ids_BL.numpy(), mask_BL.numpy()], share_inputs=True, share_outputs=True)[0]
        )

    return {"OpenVINO": states(graph), "OpenVINO int8": states(quantised)}


def in_onnxruntime(folder: Path) -> States:
    """In int8; the files stay in the folder."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain, quantised = folder / "model.onnx", folder / "model-int8.onnx"
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(Decoder(folder), f=plain, **example(), dynamo=True, input_names=names, verbose=False)
    quantize_dynamic(plain, quantised, per_channel=True, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(quantised, options, providers=["CPUExecutionProvider"])
    return lambda ids_BL, mask_BL: torch.from_numpy(
        session.run(None, dict(zip(names, (ids_BL.numpy(), mask_BL.numpy()), strict=True)))[0]
    )
