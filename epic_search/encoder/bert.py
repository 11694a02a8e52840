"""A BERT encoder (arXiv 1810.04805) read without transformers, for packed and for padded texts.

Shapes: N = 1 x T packed or B x L padded positions, C width, H heads, W head width.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epic_search.encoder.attention import Packing, attend
from epic_search.encoder.bare import Bare, embedding, raw_config
from epic_search.encoder.batching import Batch
from epic_search.errors import UserError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
}


class Bert(Bare):
    """Token ids -> hidden states, (1, T, C) or (B, L, C); the modules are named as in transformers."""

    options = {"add_pooling_layer": False}

    embeddings: Any
    encoder: Any

    def __init__(self, folder: Path, *, dtype: torch.dtype) -> None:
        """The model of a folder; raises UserError when it is a BERT of another kind or its weights do not fit."""
        raw = raw_config(folder)
        config = SimpleNamespace(**{"layer_norm_eps": 1e-12, "type_vocab_size": 2, "hidden_act": "gelu"} | raw)
        if raw.get("position_embedding_type", "absolute") != "absolute" or config.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"{folder} holds a BERT with {raw.get('position_embedding_type')} positions and the activation "
                f"{config.hidden_act}; a Contextual encoder has absolute positions and one of {', '.join(ACTIVATIONS)}"
            )
        super().__init__(folder, config)
        width, norm = config.hidden_size, partial(nn.LayerNorm, eps=config.layer_norm_eps)
        with torch.device("meta"):
            self.embeddings = nn.Module()
            self.embeddings.word_embeddings = embedding(config.vocab_size, width, dtype=dtype)
            self.embeddings.position_embeddings = embedding(config.max_position_embeddings, width, dtype=dtype)
            self.embeddings.token_type_embeddings = embedding(config.type_vocab_size, width, dtype=dtype)
            self.embeddings.LayerNorm = norm(width)
            self.encoder = nn.Module()
            self.encoder.layer = nn.ModuleList(_Layer(config, norm) for _ in range(config.num_hidden_layers))
        try:
            self.fill(dtype=dtype)
        except ValueError as error:
            raise UserError(f"the weights in {folder} are not those of its config.json: {error}") from error

    def forward(self, batch: Batch) -> Tensor:
        parts = self.embeddings
        states = parts.word_embeddings(batch.ids) + parts.token_type_embeddings.weight[0]
        states = parts.LayerNorm(states + parts.position_embeddings(batch.positions))
        packing = batch.packing if batch.mask_BL is None else None
        mask_B11L = None if batch.mask_BL is None else batch.mask_BL[:, None, None].bool()
        for layer in self.encoder.layer:
            states = layer(states, packing, mask_B11L)
        return states


class _Layer(nn.Module):
    attention: Any
    intermediate: Any
    output: Any

    def __init__(self, config: SimpleNamespace, norm: partial[nn.LayerNorm]) -> None:
        super().__init__()
        width = config.hidden_size
        self._head_width = width // config.num_attention_heads
        self.activation = ACTIVATIONS[config.hidden_act]
        self.attention = nn.Module()
        self.attention.self = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": norm(width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, config.intermediate_size)})
        self.output = nn.ModuleDict({"dense": nn.Linear(config.intermediate_size, width), "LayerNorm": norm(width)})

    def forward(self, states: Tensor, packing: Packing | None, mask_B11L: Tensor | None) -> Tensor:
        query, key, value = (
            part(states).unflatten(-1, (-1, self._head_width)) for part in self.attention.self.values()
        )
        if packing is not None:
            attended = attend(query[0], key[0], value[0], packing, causal=False)[None]
        else:
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B11L).transpose(1, 2)
        out = self.attention.output
        states = out["LayerNorm"](states + out["dense"](attended.flatten(2)))
        hidden = self.activation(self.intermediate["dense"](states))
        return self.output["LayerNorm"](states + self.output["dense"](hidden))
