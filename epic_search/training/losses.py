"""The losses of a batch, of its vectors alone: contrast without and with demonstrations, and what teachers say.

Shapes: Q queries, K queries with demonstrations, P passages, N = Q + P texts, E embedding width, D width of a part of
it, T width of a teacher's vectors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.matryoshka import halves, truncate
from epic_search.training.passes import Passes
from epic_search.training.recipe import Objective


@dataclass(frozen=True)
class Losses:
    """`total` carries the gradient; the rest is for the log, None where no query of the batch counts.

    `passage_cosine`: mean cosine between different passages of the batch; near 1 they have collapsed into one.
    """

    total: Tensor
    without: float | None
    with_demonstrations: float | None
    distillation: float | None
    text_distillation: float | None
    accuracy_without: float | None
    accuracy_with: float | None
    passage_cosine: float
    tokens: int


def losses_of_vectors(
    passes: Passes,
    query_QE: Tensor | None,
    passage_PE: Tensor,
    demonstrated_QE: Tensor | None,
    teacher_KE: Tensor | None,
    objective: Objective,
    *,
    config: EncoderConfig,
) -> Losses:
    """The losses of both passes, of their vectors alone. `config`: of the encoder, which says what they are made of."""
    total = passage_PE.new_zeros(())
    loss_1, accuracy_1, distillation = None, None, None
    if query_QE is not None:
        loss_1, accuracy_1 = info_nce(query_QE @ passage_PE.T, passes.allowed_QP, passes.told_Q, objective)
        loss_1 = with_parts(loss_1, query_QE, passage_PE, passes.allowed_QP, passes.told_Q, objective, config)
        total = total + objective.contrast_without * loss_1
        if passes.teacher_NT is not None:
            distillation = distill(torch.cat([query_QE, passage_PE]), passes.teacher_NT, objective)

    loss_2, accuracy_2, text_distillation = None, None, None
    if demonstrated_QE is not None:
        told_Q = passes.told_Q | passes.shown_Q
        loss_2, accuracy_2 = info_nce(demonstrated_QE @ passage_PE.T, passes.visible_QP, told_Q, objective)
        loss_2 = with_parts(loss_2, demonstrated_QE, passage_PE, passes.visible_QP, told_Q, objective, config)
        total = total + objective.contrast_with * loss_2
        if teacher_KE is not None:
            # The passages are the same for both: only the query is pulled.
            scores_KP, teacher_KP = (
                vectors_KE @ passage_PE.detach().T for vectors_KE in (demonstrated_QE[passes.shown_Q], teacher_KE)
            )
            text_distillation = imitate(scores_KP, teacher_KP, passes.visible_QP[passes.shown_Q], objective)
            total = total + objective.text_distill_weight * text_distillation
    if not passes.batch.pairs:
        total = objective.label_weight * total

    return Losses(
        total if distillation is None else total + distillation,
        without=loss_1.item() if loss_1 is not None and accuracy_1 is not None else None,
        with_demonstrations=loss_2.item() if loss_2 is not None and accuracy_2 is not None else None,
        distillation=distillation.item() if distillation is not None else None,
        text_distillation=text_distillation.item() if text_distillation is not None else None,
        accuracy_without=accuracy_1,
        accuracy_with=accuracy_2,
        passage_cosine=mean_cosine(passage_PE.detach()),
        tokens=passes.tokens,
    )


def mean_cosine(vectors_NE: Tensor) -> float:
    """Mean cosine between different rows of unit length, from their sum: without the N x N products."""
    N = len(vectors_NE)
    return (vectors_NE.sum(dim=0).square().sum().item() - N) / (N * (N - 1))


def info_nce(
    scores_QP: Tensor, allowed_QP: Tensor, told_Q: Tensor, objective: Objective
) -> tuple[Tensor, float | None]:
    """InfoNCE at `objective.temperature` and in-batch accuracy over the queries in `told_Q`.

    The positive of query i is passage i. A candidate that scores above its positive by more than the margin is taken
    for a false negative (Qwen3-Embedding, arXiv 2506.05176) and left out. Where `told_Q` holds no query the loss is 0
    and there is no accuracy.
    """
    positive_Q1 = scores_QP.diagonal().unsqueeze(1)
    candidates_QP = allowed_QP
    if objective.false_negative_margin is not None:
        candidates_QP = allowed_QP & (scores_QP.detach() <= positive_Q1.detach() + objective.false_negative_margin)
    logits_QP = (scores_QP / objective.temperature).masked_fill(~candidates_QP, float("-inf"))
    losses_Q = F.cross_entropy(logits_QP, torch.arange(len(scores_QP), device=scores_QP.device), reduction="none")
    hits_Q = scores_QP.masked_fill(~allowed_QP, float("-inf")).amax(dim=1) == positive_Q1.squeeze(1)
    count = int(told_Q.sum())
    accuracy = int((hits_Q & told_Q).sum()) / count if count else None
    return (losses_Q * told_Q).sum() / max(1, count), accuracy


def with_parts(
    loss: Tensor,
    query_QE: Tensor,
    passage_PE: Tensor,
    allowed_QP: Tensor,
    told_Q: Tensor,
    objective: Objective,
    config: EncoderConfig,
) -> Tensor:
    """The InfoNCE loss of whole vectors, with those of their parts where the recipe asks for them.

    The mean over the whole and each Matryoshka width (arXiv 2205.13147, where it is their sum: a mean leaves the
    weights of other losses their meaning), and `half_weight` times the losses of the Contextual half and of the EOS
    half: without these the Contextual half, good from the first step, leaves the EOS half nothing to learn.
    """

    def of_part(query_QD: Tensor, passage_PD: Tensor) -> Tensor:
        return info_nce(query_QD @ passage_PD.T, allowed_QP, told_Q, objective)[0]

    widths = config.matryoshka or []
    cut = [of_part(truncate(query_QE, width), truncate(passage_PE, width)) for width in widths]
    loss = torch.stack([loss, *cut]).mean()
    if config.pooling == "concat" and objective.half_weight:
        pairs = zip(halves(query_QE, config), halves(passage_PE, config), strict=True)
        parts = [
            of_part(F.normalize(query_QD, dim=1), F.normalize(passage_PD, dim=1)) for query_QD, passage_PD in pairs
        ]
        loss = loss + objective.half_weight * torch.stack(parts).sum()
    return loss


def imitate(scores_KP: Tensor, teacher_KP: Tensor, allowed_KP: Tensor, objective: Objective) -> Tensor:
    """KL divergence from a teacher's distribution over the passages of the batch, at `distill_temperature`."""
    student, teacher = (
        F.log_softmax((scores / objective.distill_temperature).masked_fill(~allowed_KP, -1e4), dim=1)
        for scores in (scores_KP, teacher_KP)
    )
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def distill(vectors_NE: Tensor, teacher_NT: Tensor, objective: Objective) -> Tensor:
    """How far the likenesses of all texts of a batch are from those that the teacher sees (relational distillation).

    `distill_weight` times the KL divergence from the teacher's distribution of each text over all others, at
    `distill_temperature` (the near ones count), plus `geometry_weight` times the mean squared difference of cosines
    (all count alike). Only likenesses meet, so that widths may differ (arXiv 1904.05068).
    """
    own_NN = torch.eye(len(vectors_NE), dtype=torch.bool, device=vectors_NE.device)
    student_NN, wanted_NN = vectors_NE @ vectors_NE.T, teacher_NT @ teacher_NT.T

    def over_others(likeness_NN: Tensor) -> Tensor:
        return F.log_softmax((likeness_NN / objective.distill_temperature).masked_fill(own_NN, -1e4), dim=1)

    divergence = F.kl_div(over_others(student_NN), over_others(wanted_NN), log_target=True, reduction="batchmean")
    squares = (student_NN - wanted_NN)[~own_NN].square().mean()
    return objective.distill_weight * divergence + objective.geometry_weight * squares
