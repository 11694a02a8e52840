"""Whether an objective and an encoder go together; a recipe that starts from a checkpoint does not show it alone."""

from epic_search.encoder.config import EncoderConfig
from epic_search.errors import UserError
from epic_search.training.recipe import CONTEXTUAL, Objective


def check_objective(objective: Objective, encoder: EncoderConfig) -> None:
    """Raise UserError where an objective asks for what the encoder, of the recipe or of its start, does not have."""
    if objective.text_distill_weight and encoder.demonstrations != "soft":
        raise UserError(
            "objective.text_distill_weight teaches soft demonstrations, and the demonstrations of this encoder are "
            f"'{encoder.demonstrations}'; take it out, or train an encoder whose demonstrations are 'soft'"
        )
    contextual = encoder.contextual
    follows_own = objective.taught and objective.teacher == CONTEXTUAL
    if follows_own and contextual is None:
        raise UserError(
            f"objective.teacher is '{CONTEXTUAL}', and this encoder has no Contextual encoder; name another teacher, "
            "or set distill_weight and geometry_weight to 0"
        )
    if follows_own and contextual is not None and contextual.lora is not None:
        raise UserError(
            f"objective.teacher is '{CONTEXTUAL}', and [encoder.contextual.lora] trains that encoder, which would "
            f"follow itself; name another teacher, such as 'st:{contextual.encoder}', or take that table out"
        )
    if objective.half_weight and contextual is not None and contextual.residual:
        raise UserError(
            "objective.half_weight is about the Contextual and the EOS half of vectors, and the residual mixes them; "
            "set it to 0, or train an encoder without encoder.contextual.residual"
        )
