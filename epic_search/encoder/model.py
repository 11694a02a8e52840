"""The encoder as one torch module: input rows with slots in, pooled unit-length vectors out.

Shapes: B rows of a batch, L padded length, T packed tokens, N = B*L or T flattened positions, R positions of a row that
are read, D width of the backbone, E width of an embedding, C width of the Contextual encoder, S of pooled states (B, S)
or soft slots in the batch (S, E), P tokens of a shared prefix.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epic_search.encoder.attention import PACKED, KeyValue
from epic_search.encoder.backbone import load_backbone, use_layout
from epic_search.encoder.bare import BareDecoder
from epic_search.encoder.batching import Batch, lay_out, pack
from epic_search.encoder.checkpoint import Checkpoint
from epic_search.encoder.config import LORA_FOLDER, PROJECTORS_FILE, EncoderConfig
from epic_search.encoder.contextual import ContextualEncoder, mean_of_rows
from epic_search.encoder.decoder import Decoder
from epic_search.encoder.learning_decoder import LearningDecoder, learning_decoder
from epic_search.encoder.matryoshka import join
from epic_search.encoder.prompt import CONTEXTUAL_SLOT, SOFT_SLOT, Row
from epic_search.encoder.residual import Residual
from epic_search.encoder.soft_tokens import Projector
from epic_search.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EncoderModel(nn.Module):
    """Backbone, soft-token projector and, where configured, the Contextual encoder, its projector and the residual."""

    def __init__(
        self, config: EncoderConfig, backbone: "PreTrainedModel | BareDecoder", contextual: ContextualEncoder | None
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.contextual = contextual
        self.layout = "padded"
        self._decoder: Decoder | None = None
        self._learning: LearningDecoder | None = None
        self._plain_attention: str = backbone.config._attn_implementation
        width = backbone.config.hidden_size
        states_width = self.dim = 2 * width if config.pooling == "concat" else width
        self.residual: Residual | None = None
        if contextual is not None and config.contextual is not None and config.contextual.residual:
            self.residual = Residual(states_width=states_width, context_width=contextual.width)
            self.dim = contextual.width
        norm = mean_token_norm(backbone)
        self.soft_tokens = Projector(config.soft_tokens.projector, self.dim, width, token_norm=norm)
        self.context_projector: Projector | None = None
        if contextual is not None and config.contextual is not None:
            self.context_projector = Projector(
                config.contextual.projector, contextual.width, width, token_norm=norm * config.contextual.gain
            )

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def use_layout(self, layout: str) -> None:
        """Lay texts out "packed" (end to end) or "padded" (the plain reference)."""
        self.layout = layout
        if layout != PACKED and isinstance(self.backbone, BareDecoder):
            self.backbone = self.backbone.in_transformers()
        if not isinstance(self.backbone, BareDecoder):
            use_layout(self.backbone, layout, plain=self._plain_attention)
        if self.contextual is not None:
            self.contextual.use_layout(layout)

    def freeze(self, *, int8: bool = False) -> None:
        """Take the fast way through models, wherever texts are packed, whose weights stay as they are from now on.

        `int8`: with the decoder's products in it, for which there have to be compiled passes. Those of the Contextual
        encoder stay as they are: they would gain little and lose more, as every token and the vector itself read it.
        """
        if self.layout == PACKED:
            self._decoder = Decoder(self.backbone, int8=int8)
            if self.contextual is not None:
                self.contextual.freeze()

    def learn(self) -> None:
        """Take the fast way, wherever texts are packed and there is one, to train what learns from now on."""
        if self.layout == PACKED:
            self._learning = learning_decoder(self.backbone)
            if self.contextual is not None and not self.contextual.learns:
                self.contextual.freeze()

    @property
    def shares_prefixes(self) -> bool:
        """Whether `forward` takes a prefix."""
        return self._decoder is not None and self.layout == PACKED

    def prefill(self, ids: Sequence[int], *, soft_SE: Tensor) -> list[KeyValue]:
        """The keys and values of a prefix, of token ids and soft slots, for each layer."""
        assert self._decoder is not None, "freeze the model first"
        batch = pack([ids], device=self.device)
        return self._decoder.prefill(self._input_tokens(batch, None, soft_SE)[0])

    def forward(
        self,
        rows: Sequence[Row],
        *,
        context_BC: Tensor | None,
        soft_SE: Tensor,
        prefix: Sequence[KeyValue] | None = None,
    ) -> Tensor:
        """(B, E) float32 unit-length vectors, whole ones.

        `context_BC`: one Contextual vector for each row, None without a Contextual encoder; `soft_SE`: vectors for the
        soft slots in row-major order, (0, E) if there are none; `prefix`: what `prefill` made of the tokens that stand
        before every row.
        """
        states_BS = self.pooled(rows, context_BC=context_BC, soft_SE=soft_SE, prefix=prefix)
        if self.residual is not None:
            assert context_BC is not None, "this encoder needs Contextual vectors"
            with torch.autocast(self.device.type, enabled=False):  # rounding here would move every vector
                states_BS = self.residual(states_BS, context_BC)
        return F.normalize(states_BS, dim=-1)

    def pooled(
        self,
        rows: Sequence[Row],
        *,
        context_BC: Tensor | None,
        soft_SE: Tensor,
        prefix: Sequence[KeyValue] | None = None,
    ) -> Tensor:
        """(B, S) float32 states of the decoder, pooled, as they are; with what `forward` takes."""
        assert (context_BC is None) == (self.context_projector is None), (
            "Contextual vectors for encoders that read them"
        )
        reads_BR = self._reads(rows)
        if self._decoder is not None and self.layout == PACKED:
            batch = pack([row.ids for row in rows], device=self.device, first=len(prefix[0][0]) if prefix else 0)
            tokens_1TD = self._input_tokens(batch, context_BC, soft_SE)
            states = self._decoder(tokens_1TD[0], batch.positions[0], batch.packing, prefix=prefix, reads_BR=reads_BR)
        elif self._learning is not None and self.layout == PACKED:
            assert prefix is None, "only a frozen model takes a prefix"
            batch = pack([row.ids for row in rows], device=self.device)
            tokens_1TD = self._input_tokens(batch, context_BC, soft_SE)
            states = self._learning(tokens_1TD[0], batch.positions[0], batch.packing, reads_BR=reads_BR)
        else:
            assert prefix is None, "only a frozen model with packed texts takes a prefix"
            batch = lay_out([row.ids for row in rows], self.layout, device=self.device)
            hidden = self.backbone(
                inputs_embeds=self._input_tokens(batch, context_BC, soft_SE),
                use_cache=False,  # with a cache, transformers reads packed positions wrongly; nothing here reuses one
                **batch.arguments,
            ).last_hidden_state
            states = hidden.flatten(0, 1)
            if reads_BR is not None:
                states = states[(batch.starts_B[:, None] + reads_BR).flatten()]
        return self._pool(states, batch, rows)

    def projectors(self) -> dict[str, nn.Module]:
        """The modules around the backbone that are trained in full, by the names of their weights in a checkpoint."""
        parts = {
            "soft_tokens": self.soft_tokens,
            "context_projector": self.context_projector,
            "residual": self.residual,
        }
        return {name: module for name, module in parts.items() if module is not None}

    def adapted(self, adapter: str) -> nn.Module:
        """The module that the LoRA weights in this folder of a checkpoint are for."""
        if adapter == LORA_FOLDER:
            return self.backbone
        assert self.contextual is not None, f"LoRA weights in {adapter} are of a Contextual encoder"
        return self.contextual.model

    def _input_tokens(self, batch: Batch, context_BC: Tensor | None, soft_SE: Tensor) -> Tensor:
        tokens = self.backbone.get_input_embeddings()(batch.ids.clamp(min=0))
        if context_BC is not None:
            assert self.context_projector is not None
            tokens = _fill(tokens, batch.ids == CONTEXTUAL_SLOT, self.context_projector(context_BC))
        if len(soft_SE):
            tokens = _fill(tokens, batch.ids == SOFT_SLOT, self.soft_tokens(soft_SE))
        return tokens

    def _reads(self, rows: Sequence[Row]) -> Tensor | None:
        """(B, R) positions within each row whose states make its embedding; None: the text's own, however many."""
        if self.config.pooling == "mean":
            return None
        reads = [[len(row) - 1] for row in rows]
        if self.config.pooling == "concat":
            reads = [[row.ids.index(CONTEXTUAL_SLOT), last] for row, [last] in zip(rows, reads, strict=True)]
        return torch.tensor(reads, device=self.device)

    def _pool(self, states_ND: Tensor, batch: Batch, rows: Sequence[Row]) -> Tensor:
        """(B, S) from the states that are read (B * R, D) or, for the mean, from all (N, D)."""
        if self.config.pooling == "mean":
            starts_B = batch.starts_B + torch.tensor([row.start for row in rows], device=self.device)
            # A text without tokens is pooled at what follows it.
            return mean_of_rows(states_ND, starts_B, [max(1, row.stop - row.start) for row in rows])
        if self.config.pooling == "last":
            return states_ND.float()
        context_BD, last_BD = states_ND.float().unflatten(0, (-1, 2)).unbind(1)
        return join(context_BD, last_BD, self.config)


def _fill(tokens: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
    """The vectors, in order, in place of the tokens at the slots."""
    assert int(slots.sum()) == len(vectors), (int(slots.sum()), len(vectors))
    return tokens.masked_scatter(slots.unsqueeze(-1), vectors.to(tokens.dtype))


@torch.no_grad()
def mean_token_norm(backbone: "PreTrainedModel | BareDecoder") -> float:
    """Mean norm of the backbone's token embeddings, as its layers see them."""
    embed = backbone.get_input_embeddings()
    assert isinstance(embed, nn.Embedding), type(embed)
    sample = torch.arange(0, embed.num_embeddings, max(1, embed.num_embeddings // 4096), device=embed.weight.device)
    return float(embed(sample).float().norm(dim=-1).mean())


def build_model(
    found: Checkpoint, *, dtype: torch.dtype, backbone: "PreTrainedModel | BareDecoder | None" = None
) -> EncoderModel:
    """The torch module of a checkpoint, with its projectors loaded and without its LoRA layers.

    The projectors stay in float32: they are small, and rounding there would reach every token. `backbone` is one that
    is loaded already.
    """
    config = found.config
    if backbone is None:
        backbone = load_backbone(found.backbone, layers=config.layers, dtype=dtype)
    contextual = None
    if found.contextual is not None and config.contextual is not None:
        contextual = ContextualEncoder(found.contextual, max_length=config.contextual.max_length, dtype=dtype)
    # Projectors that are about to be read need no values before (orthogonal ones take as long as the rest together).
    with torch.device("meta" if found.folder is not None else "cpu"):
        model = EncoderModel(config, backbone, contextual)
    if found.folder is not None:
        _load_projectors(model, found.folder / PROJECTORS_FILE)
    return model


def _load_projectors(model: EncoderModel, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
        if model.residual is not None and "residual.mean" not in weights:
            raise UserError(
                f"{path} holds a residual of an earlier version, whose vectors were wider; train the encoder again"
            )
        result = model.load_state_dict(weights, strict=False, assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not fit its encoder.json: {' '.join(str(error).split())}") from error
    missing = [name for name in result.missing_keys if name.split(".")[0] in model.projectors()]
    if missing or result.unexpected_keys:
        raise UserError(f"{path} does not fit its encoder.json: missing {missing}, unexpected {result.unexpected_keys}")
