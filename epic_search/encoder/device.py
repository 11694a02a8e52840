"""Where an encoder runs, and in what precision."""

from typing import Literal

import torch

from epic_search.encoder.backbone import Choice
from epic_search.encoder.passes import tiles_on
from epic_search.errors import UserError

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "int8"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def choose_device(device: Device) -> torch.device:
    """The GPU where there is one, unless told otherwise; raises UserError for a device that is not there."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device '{device}' is not one of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' was asked for, but torch sees no GPU; use auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def choose_dtype(dtype: Dtype, device: torch.device) -> Choice:
    """bfloat16 where the hardware multiplies it fast, else float32; int8 only where it is asked for.

    Raises UserError for any other name, and for int8 where there are no products in it.
    """
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype '{dtype}' is not one of auto, {', '.join(DTYPES)}")
    if dtype == "int8" and isinstance(found := tiles_on(device), str):
        raise UserError(
            f"dtype 'int8' needs a CPU with AMX and products compiled for it, and there are none here: {found}; "
            "use auto"
        )
    if dtype != "auto":
        return Choice(dtype, "asked for")
    if device.type == "cuda":
        return Choice("bfloat16", "a GPU multiplies bfloat16 several times faster")
    if torch.cpu._is_amx_tile_supported():
        return Choice("bfloat16", "this processor has AMX tiles for bfloat16")
    return Choice("float32", "this processor has no fast bfloat16")
