"""The Contextual encoder in use: packed texts through BERT's layers in compiled passes, wherever these can be had.

`Bert` is the reference, what is trained, and what does the work everywhere else. Here the products of queries, keys and
values are one, and no bias takes a pass of its own: a query's is part of the product; the outputs' are added within the
norm that follows; a key's moves all scores of a query alike, which softmax does not see; and a value's reaches the
output undivided, as attention weights sum to one, so it is part of the bias there.

Shapes: T tokens, C width, H heads, W head width, V words, P positions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder.attention import Packing
from epic_search.encoder.batching import Batch
from epic_search.encoder.bert import Bert
from epic_search.encoder.decoder import join_weights
from epic_search.encoder.passes import Compiled, compiled_for
from epic_search.encoder.tiles import Weight


class FrozenBert:
    """A model that stays as it is: weights are shared with it, not copied, as in `Decoder`."""

    def __init__(self, bert: Bert) -> None:
        self._bert = bert
        parts = bert.embeddings
        self._words_VC: Tensor = parts.word_embeddings.weight
        self._places_PC: Tensor = parts.position_embeddings.weight + parts.token_type_embeddings.weight[0]
        self._norm = parts.LayerNorm
        self._layers = [_Layer(layer, heads=bert.config.num_attention_heads) for layer in bert.encoder.layer]

    def __call__(self, batch: Batch) -> Tensor:
        """Hidden states, as the model itself returns them."""
        passes = None if batch.mask_BL is not None else compiled_for(self._words_VC, tokens=batch.ids.numel())
        if passes is None:
            states: Tensor = self._bert(batch)
            return states
        words_TC, places_TC = self._words_VC[batch.ids[0]], self._places_PC[batch.positions[0]]
        states_TC, packing = passes.layer_norm(words_TC, self._norm, added_TD=places_TC), batch.packing
        for layer in self._layers:
            states_TC = layer(states_TC, packing, passes)
        return states_TC[None]


class _Layer:
    @torch.no_grad()
    def __init__(self, layer: Any, *, heads: int) -> None:
        own, out, up, down = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
        self._heads = heads
        bias = F.pad(own.query.bias, (0, 2 * len(own.query.bias)))
        self._query_key_value = Weight(join_weights(own.query, own.key, own.value), bias)
        self._out, self._down = Weight(out.dense.weight), Weight(down.dense.weight)
        self._up = Weight(up.dense.weight, up.dense.bias)
        self._activation = layer.activation
        out_bias = torch.addmv(out.dense.bias.float(), out.dense.weight.float(), own.value.bias.float())
        self._out_bias, self._down_bias = out_bias.to(out.dense.bias.dtype), down.dense.bias
        self._out_norm, self._down_norm = out.LayerNorm, down.LayerNorm

    def __call__(self, states_TC: Tensor, packing: Packing, passes: Compiled) -> Tensor:
        parts = passes.linear(states_TC, self._query_key_value).chunk(3, dim=-1)
        query_THW, key_THW, value_THW = (part.unflatten(-1, (self._heads, -1)) for part in parts)
        found_TC = passes.attend(query_THW, key_THW, value_THW, packing, causal=False).flatten(1)
        found_TC = passes.linear(found_TC, self._out)
        states_TC = passes.layer_norm(found_TC, self._out_norm, added_TD=states_TC, bias_D=self._out_bias)
        if self._activation is F.gelu:
            inner = passes.gelu(states_TC, self._up)
        else:
            inner = self._activation(passes.linear(states_TC, self._up))
        inner_TC = passes.linear(inner, self._down)
        return passes.layer_norm(inner_TC, self._down_norm, added_TD=states_TC, bias_D=self._down_bias)
