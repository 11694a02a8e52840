"""The decoder of an encoder in training: packed texts through frozen layers with LoRA, in bfloat16 on a CPU with AMX.

transformers' layers under autocast are the reference, and what is trained everywhere else. Here a layer is one step of
autograd with a backward pass written down: products with packed weights (`low_rank.py`), compiled passes between them
(`learning.cpp`), attention inside of texts (`attention.cpp`), and of the last layer only the tokens that are
read. From one pass to the other it keeps, for each token and layer, its states before attention and before the MLP,
queries, keys, values, what attention found, gates, and what they are for; norms, attention's weights and what comes
through the gates are cheaper to compute again.

Shapes as in `attention.py`, and D width of the backbone, W head width, R positions of a text that are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epic_search.encoder.attention import Packing
from epic_search.encoder.decoder import RMSNorm
from epic_search.encoder.learning_passes import Attention, LearningPasses
from epic_search.encoder.low_rank import LowRankProduct, base_of
from epic_search.encoder.passes import Rotation, tiles_on
from epic_search.encoder.tiles import WIDTH


class LearningDecoder:
    """The layers and the final norm of a backbone of which nothing but its LoRA layers learns."""

    def __init__(self, backbone: Any, passes: LearningPasses) -> None:
        self._passes = passes
        last = len(backbone.layers) - 1
        self._layers = [_Layer(layer, passes, apart=i == last) for i, layer in enumerate(backbone.layers)]
        self._norm: nn.Module = backbone.norm
        self._rotary: nn.Module = backbone.rotary_emb

    def __call__(
        self, tokens_TD: Tensor, positions_T: Tensor, packing: Packing, *, reads_BR: Tensor | None = None
    ) -> Tensor:
        """The last hidden states of packed texts: (B * R, D) of the tokens that are read, else (T, D)."""
        cos_1TW, sin_1TW = self._rotary(tokens_TD[None], positions_T[None])
        half = cos_1TW.shape[-1] // 2  # both halves of a head turn by the same angles
        rotation = (x[0, :, None, :half].contiguous() for x in (cos_1TW, sin_1TW))
        whole = Texts.of(packing, tuple(rotation), None)
        read = whole if reads_BR is None else Texts.of(packing, whole.rotation, reads_BR)
        states = tokens_TD
        for layer in self._layers:
            texts = read if layer is self._layers[-1] else whole
            for product in layer.products:
                product.refresh()
            states = _Learn.apply(states, layer, texts, *layer.parameters)
        return self._norm(states)


@dataclass(frozen=True)
class Texts:
    """What all layers need to know of packed texts: where they are, and which of their tokens ask (`rows`; None: all).

    `starts`, `asking` (B + 1,): where texts begin, and the last ends, among all tokens and among those that ask;
    `seen`: how many tokens of its text each of the latter sees; `rotation`, `asked`: of both.
    """

    starts: Tensor
    asking: Tensor
    seen: Tensor
    rotation: Rotation
    asked: Rotation
    rows: Tensor | None

    @classmethod
    def of(cls, packing: Packing, rotation: Rotation, reads_BR: Tensor | None) -> "Texts":
        starts, (asking, seen) = packing.starts, packing.asking(reads_BR)
        if reads_BR is None:
            return cls(starts, asking, seen, rotation, rotation, None)
        rows = (starts[:-1, None] + reads_BR).flatten()
        return cls(starts, asking, seen, rotation, (rotation[0][rows], rotation[1][rows]), rows)


class _Layer:
    """The products and norms of a layer. `apart`: queries apart from keys and values, to ask for a few tokens only."""

    def __init__(self, layer: Any, passes: LearningPasses, *, apart: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.passes = passes
        self.scale: float = attention.scaling
        self.width: int = attention.head_dim
        self.norm, self.mlp_norm = RMSNorm(layer.input_layernorm), RMSNorm(layer.post_attention_layernorm)
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.heads, self.groups = (part.out_features // self.width for part in projections[:2])
        self.query = LowRankProduct(projections[:1]) if apart else None
        self.key_value = LowRankProduct(projections[1:] if apart else projections)
        self.out, self.down = LowRankProduct([attention.o_proj]), LowRankProduct([mlp.down_proj])
        self.gate_up = LowRankProduct([mlp.gate_proj, mlp.up_proj])
        self.products = [*([self.query] if self.query else []), self.key_value, self.out, self.gate_up, self.down]
        self._key = 0 if apart else self.heads * self.width
        self.parameters = [parameter for product in self.products for parameter in product.parameters]

    def attention(self, query: Tensor, joined: Tensor, texts: Texts) -> Attention:
        """Of heads in the rows of `query` to those behind them, or where these are apart, to all in `joined`."""
        heads = self._key, self.heads, self.groups, self.width, self.scale
        return Attention(query, joined, *heads, texts.asking, texts.starts, texts.seen)


class _Learn(torch.autograd.Function):
    """A layer, forward and back: the states (Q, D) after it of the tokens that ask, from those of all before it."""

    @staticmethod
    def forward(ctx: Any, states_TD: Tensor, layer: _Layer, texts: Texts, *_: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            out_QD, kept = _forward(states_TD, layer, texts)
        ctx.layer, ctx.texts = layer, texts
        ctx.save_for_backward(*kept)
        return out_QD

    @staticmethod
    def backward(ctx: Any, gradient_QD: Tensor) -> tuple[Tensor | None, ...]:
        of_states_TD, found = _backward(
            gradient_QD, ctx.saved_tensors, ctx.layer, ctx.texts, states_learn=ctx.needs_input_grad[0]
        )
        return of_states_TD, None, None, *found


def _forward(states_TD: Tensor, layer: _Layer, texts: Texts) -> tuple[Tensor, list[Tensor | None]]:
    """The states after a layer, and what the way back needs."""
    passes, rows, H, G, W = layer.passes, texts.rows, layer.heads, layer.groups, layer.width
    normed, scales_T = passes.norm(states_TD, layer.norm.weight, layer.norm.eps, room=layer.key_value.room)
    joined, low_TR = layer.key_value.forward(normed, passes)
    query, low_QR, own_QD, query_scales = joined, None, states_TD, None
    if layer.query is not None:
        own_QD = states_TD if rows is None else states_TD[rows]
        normed, query_scales = passes.norm(own_QD, layer.norm.weight, layer.norm.eps, room=layer.query.room)
        query, low_QR = layer.query.forward(normed, passes)
        passes.rotate(query, H, texts.asked)
        passes.rotate(joined, G, texts.rotation)
    else:
        passes.rotate(joined, H + G, texts.rotation)
    attended = joined.new_zeros(len(own_QD), H * W + layer.out.room)
    passes.attend(attended, layer.attention(query, joined, texts))
    middle_QD, out_low_QR = layer.out.forward(attended, passes)
    mlp_norm, room = layer.mlp_norm, layer.gate_up.room
    normed, mlp_scales_Q = passes.norm(middle_QD, mlp_norm.weight, mlp_norm.eps, room=room, added_TD=own_QD)
    gate_up, gate_low_QR = layer.gate_up.forward(normed, passes)
    out_QD, down_low_QR = layer.down.forward(passes.gate(gate_up, room=layer.down.room), passes)
    kept = [states_TD, scales_T, low_TR, joined, own_QD, query_scales, low_QR, query, attended, out_low_QR]
    kept += [middle_QD, mlp_scales_Q, gate_up, gate_low_QR, down_low_QR]
    return out_QD.add_(middle_QD), kept


def _backward(
    gradient_QD: Tensor, kept: Sequence[Tensor], layer: _Layer, texts: Texts, *, states_learn: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradients of the states before a layer, where these learn, and of its parameters."""
    passes, rows, H, G, W = layer.passes, texts.rows, layer.heads, layer.groups, layer.width
    states_TD, scales_T, low_TR, joined, own_QD, query_scales, low_QR, query, attended, out_low_QR, *kept = kept
    middle_QD, mlp_scales_Q, gate_up, gate_low_QR, down_low_QR = kept
    # The MLP.
    gradient = F.pad(gradient_QD, (0, layer.down.room))
    of_inner_QI = layer.down.backward(gradient, passes)
    of_gate_up, inner_QI = passes.gate_backward(of_inner_QI, gate_up, room=layer.gate_up.room)
    of_down = layer.down.gradients(gradient, inner_QI, down_low_QR, passes)
    del of_inner_QI, inner_QI
    of_normed_QD = layer.gate_up.backward(of_gate_up, passes)
    of_own_QD = gradient_QD.clone(memory_format=torch.contiguous_format)
    normed_QD = passes.norm_backward(of_own_QD, of_normed_QD, middle_QD, mlp_scales_Q, layer.mlp_norm.weight)
    of_gates = layer.gate_up.gradients(of_gate_up, normed_QD, gate_low_QR, passes)
    del of_gate_up
    # Attention.
    gradient = F.pad(of_own_QD, (0, layer.out.room))
    of_attended = layer.out.backward(gradient, passes)
    of_out = layer.out.gradients(gradient, attended[:, : H * W], out_low_QR, passes)
    of_joined = joined.new_zeros(len(joined), joined.shape[1] + layer.key_value.room)
    of_query = query.new_zeros(len(query), H * W + layer.query.room) if layer.query else of_joined
    passes.attend_backward(of_query, of_joined, of_attended, layer.attention(query, joined, texts))
    (cos, sin), (asking_cos, asking_sin) = texts.rotation, texts.asked
    passes.rotate(of_joined, G if layer.query else H + G, (cos, -sin))
    # The norm before it, of all tokens and, apart from these, of those that ask.
    of_all_TD = of_own_QD if rows is None else torch.zeros_like(states_TD)
    if states_learn:
        of_normed_TD = layer.key_value.backward(of_joined, passes)
        normed_TD = passes.norm_backward(of_all_TD, of_normed_TD, states_TD, scales_T, layer.norm.weight)
    else:
        layer.key_value.backward_low(of_joined, passes)
        normed_TD, _ = passes.norm(states_TD, layer.norm.weight, layer.norm.eps, room=0)
    found = layer.key_value.gradients(of_joined, normed_TD, low_TR, passes)
    if layer.query is not None:
        passes.rotate(of_query, H, (asking_cos, -asking_sin))
        of_normed_QD = layer.query.backward(of_query, passes)
        normed_QD = passes.norm_backward(of_own_QD, of_normed_QD, own_QD, query_scales, layer.norm.weight)
        found = layer.query.gradients(of_query, normed_QD, low_QR, passes) + found
        if rows is not None:
            of_all_TD.index_add_(0, rows, of_own_QD)
    return of_all_TD if states_learn else None, [*found, *of_out, *of_gates, *of_down]


def learning_decoder(backbone: Any) -> LearningDecoder | None:
    """The fast way to train these layers; None where there is none, and transformers' layers are to be taken.

    There is one on a CPU with AMX and a compiler, for frozen weights in bfloat16, LoRA without dropout, and layers as
    plain as Llama's. What is to be built is built.
    """
    if not all(map(_is_plain, backbone.layers)):
        return None
    found = tiles_on(next(backbone.parameters()).device)
    return None if isinstance(found, str) else LearningDecoder(backbone, LearningPasses(found))


def _is_plain(layer: Any) -> bool:
    attention, mlp, sample = layer.self_attn, layer.mlp, torch.linspace(-8, 8, 65)
    if attention.head_dim % WIDTH or hasattr(attention, "q_norm"):
        return False
    if not torch.equal(mlp.act_fn(sample), F.silu(sample)):
        return False
    joined = [[attention.q_proj], [attention.k_proj, attention.v_proj], [attention.o_proj]]
    for parts in [*joined, [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]]:
        bases = [base for part in parts if (base := base_of(part)) is not None]
        if len(bases) < len(parts) or not all(map(_is_frozen, bases)):
            return False
        if any(size % WIDTH for size in (bases[0].in_features, sum(base.out_features for base in bases))):
            return False
    return True


def _is_frozen(layer: nn.Linear) -> bool:
    return layer.weight.dtype == torch.bfloat16 and not any(part.requires_grad for part in layer.parameters())
