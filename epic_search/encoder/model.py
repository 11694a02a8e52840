"""The encoder as one torch module: input rows with slots in, pooled unit-length vectors out.

Shapes: B rows of a batch, L padded length, T packed tokens, N = B*L or T flattened positions, D width of the backbone,
E width of an embedding, C width of the Contextual encoder, S soft slots in the batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epic_search.encoder.backbone import use_layout
from epic_search.encoder.batching import Batch, lay_out
from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.contextual import ContextualEncoder, mean_of_rows
from epic_search.encoder.prompt import CONTEXTUAL_SLOT, SOFT_SLOT, Row
from epic_search.encoder.residual import Residual
from epic_search.encoder.soft_tokens import Projector

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EncoderModel(nn.Module):
    """Backbone, soft-token projector and, where configured, the Contextual encoder, its projector and the residual."""

    def __init__(
        self, config: EncoderConfig, backbone: "PreTrainedModel", contextual: ContextualEncoder | None
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.contextual = contextual
        self.layout = "padded"
        self._plain_attention: str = backbone.config._attn_implementation
        width = backbone.config.hidden_size
        self.dim = 2 * width if config.pooling == "concat" else width
        norm = mean_token_norm(backbone)
        self.soft_tokens = Projector(config.soft_tokens.projector, self.dim, width, token_norm=norm)
        self.context_projector: Projector | None = None
        self.residual: Residual | None = None
        if contextual is not None and config.contextual is not None:
            self.context_projector = Projector(
                config.contextual.projector, contextual.width, width, token_norm=norm * config.contextual.gain
            )
            if config.contextual.residual:
                self.residual = Residual(dim=self.dim, context_width=contextual.width)

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def use_layout(self, layout: str) -> None:
        """Lay texts out "packed" (end to end) or "padded" (the plain reference)."""
        self.layout = layout
        use_layout(self.backbone, layout, plain=self._plain_attention)
        if self.contextual is not None:
            self.contextual.use_layout(layout)

    def forward(self, rows: Sequence[Row], *, context_BC: Tensor | None, soft_SE: Tensor) -> Tensor:
        """(B, E) float32 unit-length vectors.

        `context_BC`: one Contextual vector for each row, None without a Contextual encoder; `soft_SE`: vectors for the
        soft slots in row-major order, (0, E) if there are none.
        """
        batch = lay_out([row.ids for row in rows], self.layout, device=self.device)
        hidden = self.backbone(
            inputs_embeds=self._input_tokens(batch, context_BC, soft_SE),
            use_cache=False,  # with a cache, transformers reads packed positions wrongly, and nothing here reuses one
            **batch.arguments,
        ).last_hidden_state
        states_BE = self._pool(hidden.flatten(0, 1), batch, rows)
        if self.residual is not None:
            assert context_BC is not None, "this encoder needs Contextual vectors"
            with torch.autocast(self.device.type, enabled=False):  # rounding here would move every vector
                states_BE = self.residual(states_BE, context_BC)
        return F.normalize(states_BE, dim=-1)

    def projectors(self) -> dict[str, nn.Module]:
        """The modules around the backbone that are trained in full, by the names of their weights in a checkpoint."""
        parts = {
            "soft_tokens": self.soft_tokens,
            "context_projector": self.context_projector,
            "residual": self.residual,
        }
        return {name: module for name, module in parts.items() if module is not None}

    def _input_tokens(self, batch: Batch, context_BC: Tensor | None, soft_SE: Tensor) -> Tensor:
        tokens = self.backbone.get_input_embeddings()(batch.ids.clamp(min=0))
        if self.context_projector is not None:
            assert context_BC is not None, "this encoder needs Contextual vectors"
            tokens = _fill(tokens, batch.ids == CONTEXTUAL_SLOT, self.context_projector(context_BC))
        if len(soft_SE):
            tokens = _fill(tokens, batch.ids == SOFT_SLOT, self.soft_tokens(soft_SE))
        return tokens

    def _pool(self, flat_ND: Tensor, batch: Batch, rows: Sequence[Row]) -> Tensor:
        if self.config.pooling == "mean":
            starts_B = batch.starts_B + torch.tensor([row.start for row in rows], device=self.device)
            # A text without tokens is pooled at what follows it.
            return mean_of_rows(flat_ND, starts_B, [max(1, row.stop - row.start) for row in rows])
        last_BD = flat_ND[batch.last_B].float()
        if self.config.pooling == "last":
            return last_BD
        context_BD = flat_ND[(batch.ids == CONTEXTUAL_SLOT).flatten()].float()
        return torch.cat([context_BD, last_BD], dim=-1)


def _fill(tokens: Tensor, slots: Tensor, vectors: Tensor) -> Tensor:
    """The vectors, in order, in place of the tokens at the slots."""
    assert int(slots.sum()) == len(vectors), (int(slots.sum()), len(vectors))
    return tokens.masked_scatter(slots.unsqueeze(-1), vectors.to(tokens.dtype))


@torch.no_grad()
def mean_token_norm(backbone: "PreTrainedModel") -> float:
    """Mean norm of the backbone's token embeddings, as its layers see them."""
    embed = backbone.get_input_embeddings()
    assert isinstance(embed, nn.Embedding), type(embed)
    sample = torch.arange(0, embed.num_embeddings, max(1, embed.num_embeddings // 4096), device=embed.weight.device)
    return float(embed(sample).float().norm(dim=-1).mean())
