"""Matryoshka vectors (arXiv 2205.13147): the first dimensions of a vector, at unit length again, are a vector, too.

With pooling "concat" a vector has two halves, of the Contextual and of the EOS state. An encoder that was trained for
truncation has their dimensions in turn, so that each prefix is made of both; others have one half after the other. With
a residual, which mixes them, there are no halves.

Shapes: N vectors, E their width, D = E / 2 the width of a half.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder.config import EncoderConfig
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.encoder.model import EncoderModel


def join(context_ND: Tensor, last_ND: Tensor, config: EncoderConfig) -> Tensor:
    """(N, E) vectors of the two halves."""
    if _in_turn(config):
        return torch.stack([context_ND, last_ND], dim=-1).flatten(-2)
    return torch.cat([context_ND, last_ND], dim=-1)


def halves(vectors_NE: Tensor, config: EncoderConfig) -> tuple[Tensor, Tensor]:
    """The Contextual and the EOS half of vectors, (N, D) each: what `join` was given."""
    if _in_turn(config):
        return vectors_NE[:, 0::2], vectors_NE[:, 1::2]
    context_ND, last_ND = vectors_NE.chunk(2, dim=-1)
    return context_ND, last_ND


def _in_turn(config: EncoderConfig) -> bool:
    mixed = config.contextual is not None and config.contextual.residual
    return config.pooling == "concat" and bool(config.matryoshka) and not mixed


def turns(width: int) -> Tensor:
    """(E,) where each dimension of a vector with its halves in turn is, in one that has one half after the other."""
    return torch.arange(width).view(2, -1).T.flatten()


def truncate(vectors_NE: Tensor, dim: int) -> Tensor:
    """(N, dim) unit-length vectors of the first dimensions; whole vectors stay as they are."""
    return vectors_NE if dim == vectors_NE.shape[-1] else F.normalize(vectors_NE[:, :dim], dim=-1)


def prepare_training(model: "EncoderModel", config: EncoderConfig, start: Path | None) -> None:
    """Check the widths to train for; a start with one half after the other has them in turn from now on.

    Raises UserError for widths that are not smaller than the whole.
    """
    if config.matryoshka is None:
        return
    if config.matryoshka[-1] >= model.dim:
        raise UserError(
            f"objective.matryoshka names {config.matryoshka[-1]} dimensions, and vectors have {model.dim}; "
            "name smaller widths: the whole one is always trained"
        )
    if _in_turn(config) and start is not None and not _in_turn(EncoderConfig.load(start)):
        model.soft_tokens.reorder(turns(model.dim))
