"""The decoder of an encoder in use: packed texts through Llama-like layers, without work that no vector needs.

transformers' own layers are the reference, and what is trained. In use, more than half of their time on a CPU goes
into norms, rotations and activations, which here take fewer passes over memory (`passes.py`); projections of the same
states are one product; texts may share a prefix, whose keys and values are computed once; and of the last layer only
what is read is computed: the keys and values of all tokens, but no more of those that are not pooled.

It holds for pre-norm layers with RMS norms, rotated queries and keys and a gated MLP, which is what all architectures
in `PACKABLE` (see `backbone.py`) are made of; the tests compare each of them with transformers.

Shapes as in `attention.py`, and D width of the backbone, W head width.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epic_search.encoder.attention import KeyValue, Packing
from epic_search.encoder.passes import EAGER, Passes, Rotation, choose_passes
from epic_search.encoder.tiles import Weight

Hidden = tuple[Tensor, Tensor | None]
"""States, and what is still to be added to them: the norm that comes next does it in its own pass."""


class Decoder:
    """The layers and the final norm of a backbone that stays as it is: weights are shared with it, not copied.

    Make it when the backbone is where it will stay: moved or trained afterwards, the two would part. `int8`: products
    are, where compiled passes are used.
    """

    def __init__(self, backbone: Any, *, int8: bool = False) -> None:
        self._layers = [_Layer(layer, int8=int8) for layer in backbone.layers]
        self._norm = RMSNorm(backbone.norm)
        self._rotary: nn.Module = backbone.rotary_emb

    def __call__(
        self,
        tokens_TD: Tensor,
        positions_T: Tensor,
        packing: Packing,
        *,
        prefix: Sequence[KeyValue] | None = None,
        reads_BR: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states of packed texts: (B * R, D) of the tokens that are read, else (T, D).

        `positions_T` count on from the prefix, if there is one; `reads_BR`: offsets within each text.
        """
        rotation, passes = self._rotation(tokens_TD, positions_T), choose_passes(tokens_TD)
        hidden: Hidden = tokens_TD, None
        for i, layer in enumerate(self._layers):
            reads = reads_BR if i == len(self._layers) - 1 else None
            rows = None if reads is None else (packing.boundaries[:-1, None] + reads).flatten()
            hidden = layer(hidden, rotation, packing, passes, prefix[i] if prefix else None, reads, rows)
        return self._norm(hidden, passes)

    def prefill(self, tokens_PD: Tensor) -> list[KeyValue]:
        """Keys and values of tokens that stand before others, for each layer."""
        packing = Packing([len(tokens_PD)], tokens_PD.device)
        rotation = self._rotation(tokens_PD, torch.arange(len(tokens_PD), device=packing.device))
        passes = choose_passes(tokens_PD)
        hidden: Hidden = tokens_PD, None
        kept: list[KeyValue] = []
        for i, layer in enumerate(self._layers):
            query_PHW, *key_value = layer.project(hidden, rotation, passes)
            kept.append((key_value[0].contiguous(), key_value[1].contiguous()))
            if i < len(self._layers) - 1:
                attended_PHW = passes.attend(query_PHW, *kept[-1], packing, scale=layer.scale)
                hidden = layer.finish(hidden[0], attended_PHW, passes)
        return kept

    def _rotation(self, tokens_TD: Tensor, positions_T: Tensor) -> Rotation:
        cos_1TW, sin_1TW = self._rotary(tokens_TD[None], positions_T[None])
        half = cos_1TW.shape[-1] // 2  # both halves of a head turn by the same angles
        return cos_1TW[0, :, None, :half].contiguous(), sin_1TW[0, :, None, :half].contiguous()


class RMSNorm:
    """The weight of a backbone's RMS norm, as a factor, and its epsilon."""

    def __init__(self, norm: Any) -> None:
        self.eps: float = getattr(norm, "variance_epsilon", None) or norm.eps
        width = norm.weight.shape
        # Some multiply by the weight, some by one more: what the norm does to ones says it.
        ones = torch.ones(width, device=norm.weight.device)
        self.weight = (copy.deepcopy(norm).float()(ones) * (1 + self.eps) ** 0.5).to(norm.weight.dtype)

    def __call__(self, hidden: Hidden, passes: Passes) -> Tensor:
        """Of the sum, which is then the first of the two."""
        states, update = hidden
        return passes.norm(states, self.weight, self.eps, added_TD=update)


class _Layer:
    def __init__(self, layer: Any, *, int8: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.scale: float = attention.scaling
        self._width: int = attention.head_dim
        self._norm, self._mlp_norm = RMSNorm(layer.input_layernorm), RMSNorm(layer.post_attention_layernorm)
        self._head_norms = [RMSNorm(getattr(attention, n)) for n in ("q_norm", "k_norm") if hasattr(attention, n)]
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._sizes = [projection.out_features for projection in projections]
        self._activation: Callable[[Tensor], Tensor] = mlp.act_fn
        sample = torch.linspace(-8, 8, 65)
        self._is_silu = torch.equal(self._activation(sample), F.silu(sample))
        weight, bias = _joined(*projections)
        queries, make = self._sizes[0], partial(Weight, int8=int8)
        self._query_key_value = make(weight, bias)
        self._query = make(weight[:queries], None if bias is None else bias[:queries])
        self._key_value = make(weight[queries:], None if bias is None else bias[queries:])
        self._out, self._down = (make(layer.weight, layer.bias) for layer in (attention.o_proj, mlp.down_proj))
        self._gate_up = make(*_joined(mlp.gate_proj, mlp.up_proj), gated=self._is_silu)

    def __call__(
        self,
        hidden: Hidden,
        rotation: Rotation,
        packing: Packing,
        passes: Passes,
        prefix: KeyValue | None,
        reads_BR: Tensor | None,
        rows_Q: Tensor | None,
    ) -> Hidden:
        query_QHW, key_TGW, value_TGW = self.project(hidden, rotation, passes, rows_Q)
        attended_QHW = passes.attend(
            query_QHW, key_TGW, value_TGW, packing, scale=self.scale, prefix=prefix, reads_BR=reads_BR
        )
        states_TD, _ = hidden
        return self.finish(states_TD if rows_Q is None else states_TD[rows_Q], attended_QHW, passes)

    def project(
        self, hidden: Hidden, rotation: Rotation, passes: Passes, rows_Q: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (of the rows, or of all), keys and values, the first two rotated."""
        normed_TD = self._norm(hidden, passes)
        if rows_Q is None:
            joined = passes.linear(normed_TD, self._query_key_value)
            query, key, value = joined.split(self._sizes, dim=-1)
        else:
            query = passes.linear(normed_TD[rows_Q], self._query)
            key, value = passes.linear(normed_TD, self._key_value).split(self._sizes[1:], dim=-1)
        query_QHW, key_TGW, value_TGW = (x.unflatten(-1, (-1, self._width)) for x in (query, key, value))
        if self._head_norms:
            query_QHW, key_TGW = (
                norm((x, None), EAGER) for norm, x in zip(self._head_norms, (query_QHW, key_TGW), strict=True)
            )
        asking = rotation if rows_Q is None else (rotation[0][rows_Q], rotation[1][rows_Q])
        return passes.rotate(query_QHW, asking), passes.rotate(key_TGW, rotation), value_TGW

    def finish(self, states_QD: Tensor, attended_QHW: Tensor, passes: Passes) -> Hidden:
        """The states after a layer, from those before it and what its attention found."""
        hidden_QD = passes.linear(attended_QHW.flatten(1), self._out)
        normed_QD = self._mlp_norm((hidden_QD, states_QD), passes)
        if self._is_silu:
            inner = passes.gated(normed_QD, self._gate_up)
        else:
            gate, up = passes.linear(normed_QD, self._gate_up).chunk(2, dim=-1)
            inner = self._activation(gate).mul_(up)
        return hidden_QD, passes.linear(inner, self._down)


def _joined(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of linear layers that read the same states, as one product."""
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    assert len(biases) in (0, len(layers)), "some of these layers have a bias, and some do not"
    return join_weights(*layers), torch.cat(biases) if biases else None


def join_weights(*layers: nn.Linear) -> Tensor:
    """The weights of linear layers that read the same states, as one matrix. Their own become parts of it."""
    weight = torch.cat(tuple(layer.weight.detach() for layer in layers))
    for layer, part in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
        layer.weight.data = part
    return weight
