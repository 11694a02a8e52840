"""The Contextual token (Causal2Vec, arXiv 2507.23386): a small bidirectional encoder reads the whole text first.

Its mean-pooled state, scaled to unit length, goes through a projector into the decoder's input. What it says of a text
does not depend on the prompt, so one pass over a text serves both training passes. The encoder is frozen, unless it has
LoRA layers of its own: that pass then keeps its graph in training, and the gradients of all uses of a vector add up.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from epic_search.encoder.backbone import load_model, read_config
from epic_search.encoder.bare import raw_config
from epic_search.encoder.batching import Batch, batches, lay_out, token_budget
from epic_search.encoder.bert import Bert
from epic_search.encoder.frozen_bert import FrozenBert
from epic_search.encoder.tokenizer import load_tokenizer
from epic_search.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ContextualEncoder(nn.Module):
    """Texts -> (n, `width`) unit-length float32 vectors, one forward pass of the encoder."""

    def __init__(self, folder: Path, *, max_length: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = (
            Bert(folder, dtype=dtype) if raw_config(folder).get("model_type") == "bert" else _mpnet(folder, dtype)
        )
        self._frozen: FrozenBert | None = None
        self.width: int = self.model.config.hidden_size
        self._tokenizer = load_tokenizer(folder)
        # MPNet adds a bias for each distance between tokens and counts positions by itself: its texts are never packed.
        self._packable = isinstance(self.model, Bert)
        positions = self.model.config.max_position_embeddings
        # MPNet's first position comes after that of its padding token.
        limit = positions if self._packable else positions - self.model.config.pad_token_id - 1
        self._tokenizer.enable_truncation(min(max_length, limit))

    def use_layout(self, layout: str) -> None:
        """Lay texts out "packed", where this encoder can be packed, or "padded"."""
        self.layout = layout if self._packable else "padded"

    def freeze(self) -> None:
        """Take the fast way through a BERT where it is one: from now on its weights stay as they are."""
        if isinstance(self.model, Bert):
            self._frozen = FrozenBert(self.model)

    @property
    def learns(self) -> bool:
        """Whether it has weights that are trained."""
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def encode(self, texts: Sequence[str], *, recompute: bool = False) -> Tensor:
        """(n, width) on the model's device, in input order, with gradients where it learns.

        `recompute`: the backward pass runs the forward pass again, batch by batch, so that the activations of one batch
        alone are in memory (arXiv 1604.06174).
        """
        forward = partial(checkpoint, self._forward, use_reentrant=False) if recompute else self._forward
        device = next(self.model.parameters()).device
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        out_NC = torch.empty(len(rows), self.width, device=device)
        for indices in batches([len(row) for row in rows], token_budget=token_budget(device)):
            batch = lay_out([rows[i] for i in indices], self.layout, device=device)
            # The ids are given by themselves, too: by them `checkpoint` knows whose random numbers (dropout) to repeat.
            out_NC[torch.from_numpy(indices).to(device)] = forward(batch.ids, batch)
        return out_NC

    def _forward(self, ids: Tensor, batch: Batch) -> Tensor:
        if isinstance(self.model, Bert):
            hidden = (self._frozen or self.model)(batch)
        else:
            hidden = self.model(input_ids=ids, attention_mask=batch.mask_BL).last_hidden_state
        return F.normalize(mean_of_rows(hidden.flatten(0, 1), batch.starts_B, batch.lengths), dim=-1)


def mean_of_rows(flat_ND: Tensor, starts_B: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, D) float32 means over `lengths` positions from each start, in flattened positions N."""
    device = flat_ND.device
    lengths_B = torch.tensor(lengths, device=device)
    row_T = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths_B)
    within_T = torch.arange(len(row_T), device=device) - torch.repeat_interleave(
        lengths_B.cumsum(0) - lengths_B, lengths_B
    )
    sums_BD = torch.zeros(len(lengths), flat_ND.shape[1], device=device)
    sums_BD = sums_BD.index_add(0, row_T, flat_ND[starts_B[row_T] + within_T].float())
    return sums_BD / lengths_B[:, None]


def _mpnet(folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    config = read_config(folder)
    if config.model_type != "mpnet":
        # Others count positions or build attention in ways of their own; a wrong vector would not be noticed.
        raise UserError(
            f"{folder} holds a {config.model_type} model; a Contextual encoder must be a BERT or an MPNet model"
        )
    return load_model(folder, config, dtype=dtype, add_pooling_layer=False)
