"""What learns and from what: an encoder, its optimiser, the data, a teacher. A step is one batch.

What a step computes is in `objective.py`, and what of it needs no encoder in `passes.py` and `losses.py`.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from epic_search.encoder.encoder import Encoder
from epic_search.errors import UserError
from epic_search.training.average import MovingAverage
from epic_search.training.gradcache import cached_gradients
from epic_search.training.losses import Losses
from epic_search.training.memory import peak_memory_mb
from epic_search.training.mixture import Mixture
from epic_search.training.objective import epic_losses
from epic_search.training.parallel import World
from epic_search.training.passes import Passes, prepare
from epic_search.training.recipe import Optimizer, Recipe
from epic_search.training.teachers import Teacher

_DEMONSTRATIONS = 100  # stream of random numbers for drawing demonstrations, apart from those of the mixture


@dataclass
class Learner:
    """One of the processes that train an encoder.

    `teacher`: None where the recipe names none besides the Contextual encoder. `average`: the moving average of the
    trained weights, where the recipe asks for one.
    """

    recipe: Recipe
    encoder: Encoder
    optimizer: torch.optim.AdamW
    average: MovingAverage | None
    mixture: Mixture
    teacher: Teacher | None
    world: World

    def step(self, step: int) -> dict[str, Any]:
        """Learn from the batch of a step (counted from 0) and return what the log says of it.

        Raises UserError when the gradient is not finite.
        """
        recipe, settings = self.recipe, self.recipe.optimizer
        began = time.monotonic()
        factor = rate_factor(step, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        batch = self.mixture.batch(step)
        # Dropout, where a recipe asks for it, must not depend on where the run was resumed, nor be alike in two
        # processes.
        torch.manual_seed(recipe.seed + step * self.world.size + self.world.rank)
        passes = prepare(
            self.encoder,
            batch,
            recipe.objective,
            rng=np.random.default_rng([recipe.seed, _DEMONSTRATIONS, step]),
            max_length=recipe.data.max_length,
            teacher=self.teacher,
            recompute=settings.gradient_cache,
            world=self.world,
        )
        losses = self._gradients(passes, step)
        parameters = trained(self.optimizer)
        self.world.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        if not torch.isfinite(norm):
            raise UserError(
                f"the gradient of step {step + 1} ({batch.source}) is not finite; start a new run with lower learning "
                "rates or precision = 'float32'"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step + 1)
        seconds = time.monotonic() - began
        return {
            "source": batch.source,
            "loss": losses.total.item(),
            "without": losses.without,
            "with_demonstrations": losses.with_demonstrations,
            "distillation": losses.distillation,
            "text_distillation": losses.text_distillation,
            "accuracy_without": losses.accuracy_without,
            "accuracy_with": losses.accuracy_with,
            "passage_cosine": losses.passage_cosine,
            "gradient_norm": norm.item(),
            "learning_rate": settings.learning_rate * factor,
            "padding": passes.padding(self.encoder.model.layout, token_budget=settings.token_budget),
            "memory_mb": peak_memory_mb(self.encoder.device),
            "pairs_per_second": len(batch.queries) / seconds,
            "tokens_per_second": losses.tokens / seconds,
        }

    def _gradients(self, passes: Passes, step: int) -> Losses:
        """Add this process's part of the gradients to the parameters."""
        objective, budget = self.recipe.objective, self.recipe.optimizer.token_budget
        if self.recipe.optimizer.gradient_cache:
            seed = self.recipe.seed + step
            return cached_gradients(self.encoder, passes, objective, token_budget=budget, seed=seed, world=self.world)
        losses = epic_losses(self.encoder, passes, objective, token_budget=budget, world=self.world)
        (losses.total / self.world.size).backward()
        return losses


def make_optimizer(encoder: Encoder, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over what requires gradients: projectors at a learning rate of their own, all else at another.

    All else: the backbone's LoRA layers or weights, and the LoRA layers of the Contextual encoder.

    Raises UserError when nothing does.
    """
    projectors = [parameter for part in encoder.model.projectors().values() for parameter in part.parameters()]
    backbone = [parameter for parameter in encoder.model.backbone.parameters() if parameter.requires_grad]
    context = encoder.model.contextual.parameters() if encoder.model.contextual is not None else ()
    contextual = [parameter for parameter in context if parameter.requires_grad]
    groups = [
        {"params": backbone, "peak": settings.learning_rate},
        {"params": projectors, "peak": settings.projector_learning_rate},
        {"params": contextual, "peak": settings.learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UserError(
            "the recipe trains nothing: add an [encoder.lora] table or a projector that learns ('linear' or 'mlp'), "
            "or set optimizer.backbone = 'layers'"
        )
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=settings.weight_decay)


def trained(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The parameters that an optimiser moves, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def rate_factor(step: int, settings: Optimizer) -> float:
    """Share of the peak learning rate at a step (counted from 0): linear warm-up, then a linear fall."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    left = (settings.steps - step) / max(1, settings.steps - settings.warmup_steps)
    return settings.final_fraction + (1 - settings.final_fraction) * left
