"""The EPIC objective (arXiv 2605.01372, as reconstructed): one encoder, two passes, one contrastive loss for each.

Pass 1 encodes queries without demonstrations, and passages. Pass 2 encodes the queries again with demonstrations that
are other pairs of the batch, each as two soft tokens made of pass-1 vectors: reading them is what it trains.

For an encoder whose demonstrations are texts (bge-en-icl, arXiv 2409.15700), pass 2 has the tokens of the same pairs in
these places. A soft encoder can be taught by what it makes of the texts itself (`text_distill_weight`).

Shapes: Q queries, K queries with demonstrations, P passages, N rows of one sort, B of them encoded together,
E embedding width, C width of a Contextual vector.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor

from epic_search.encoder.encoder import Encoder
from epic_search.encoder.prompt import Row
from epic_search.training.losses import Losses, losses_of_vectors
from epic_search.training.parallel import ALONE, World
from epic_search.training.passes import Passes, row_groups
from epic_search.training.recipe import Objective


def epic_losses(
    encoder: Encoder, passes: Passes, objective: Objective, *, token_budget: int, world: World = ALONE
) -> Losses:
    """Encode both passes, `token_budget` tokens at a time in each process, and compute their losses."""
    first_NE = embed(encoder, passes.first_rows, passes.first_context, token_budget=token_budget, world=world)
    query_QE, passage_PE = passes.apart(first_NE)
    demonstrated_QE = None
    if passes.demonstrated_rows:
        soft = passes.soft(query_QE, passage_PE, stop_gradient=objective.stop_gradient)
        rows, context = passes.demonstrated_rows, passes.context_query
        demonstrated_QE = embed(encoder, rows, context, soft, token_budget=token_budget, world=world)
    teacher_KE = embed_teacher(encoder, passes, token_budget=token_budget, world=world)
    return losses_of_vectors(
        passes, query_QE, passage_PE, demonstrated_QE, teacher_KE, objective, config=encoder.config
    )


def embed(
    encoder: Encoder,
    rows: Sequence[Row],
    context_NC: Tensor | None,
    soft: Sequence[Tensor] | None = None,
    *,
    token_budget: int,
    world: World = ALONE,
) -> Tensor:
    """(N, E) unit-length vectors of rows, in order, with gradients. Rows are grouped by length to save padding.

    `soft`: for each row the vectors of its soft slots; None where no row has any.
    """
    groups = row_groups(rows, token_budget=token_budget, world=world)
    # With none to begin with: where there are fewer rows than processes, some have no others.
    parts = [torch.empty(0, encoder.dim, device=encoder.device)]
    parts += [embed_group(encoder, rows, context_NC, soft, indices) for indices in groups]
    own_B = np.concatenate([np.empty(0, dtype=np.int64), *groups])
    return world.gather(torch.cat(parts), own_B, count=len(rows))


@torch.no_grad()
def embed_teacher(encoder: Encoder, passes: Passes, *, token_budget: int, world: World = ALONE) -> Tensor | None:
    """(K, E) vectors of the queries with demonstrations, with these as texts; None where nobody learns from them."""
    if not passes.teacher_rows:
        return None
    context_QC = passes.context_query
    context_KC = context_QC[passes.shown_Q] if context_QC is not None else None
    return embed(encoder, passes.teacher_rows, context_KC, token_budget=token_budget, world=world)


def embed_group(
    encoder: Encoder,
    rows: Sequence[Row],
    context_NC: Tensor | None,
    soft: Sequence[Tensor] | None,
    indices: np.ndarray,
) -> Tensor:
    """(len(indices), E) unit-length vectors of some of the rows, with gradients."""
    context_BC = context_NC[torch.from_numpy(indices).to(context_NC.device)] if context_NC is not None else None
    none = torch.empty(0, encoder.dim, device=encoder.device)
    soft_SE = torch.cat([soft[i] for i in indices]) if soft is not None else none
    with mixed_precision(encoder):
        vectors_BE: Tensor = encoder.model([rows[i] for i in indices], context_BC=context_BC, soft_SE=soft_SE)
    return vectors_BE


@contextmanager
def mixed_precision(encoder: Encoder) -> Iterator[None]:
    """Products in bfloat16 within, where the frozen weights are.

    Autocast already gives LoRA's float32 weights the inputs they need; peft's own casts would copy every activation.
    Scores and losses stay outside: at a temperature of 0.02, bfloat16 is a fifth of a logit coarse.
    """
    mixed = encoder.dtype == torch.bfloat16
    with (
        torch.autocast(encoder.device.type, dtype=torch.bfloat16, enabled=mixed),
        disable_input_dtype_casting(encoder.model.backbone, active=mixed),
    ):
        yield
