"""What the shell offers after Tab: names of indexes and of encoders. Nothing here may import torch, or fail."""

from collections.abc import Iterator
from contextlib import suppress

import typer

from epic_search.errors import UserError


def complete_index(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """Indexes in the home folder that was typed, or that is in force."""
    from epic_search.index.folder import home, index_names

    with suppress(UserError, OSError):
        folder = ctx.params.get("home") or home()
        yield from (name for name in index_names(folder) if name.startswith(incomplete))


def complete_encoder(incomplete: str) -> Iterator[str]:
    """The named encoders."""
    from epic_search.encoder.checkpoint import registry

    yield from (name for name in registry() if name.startswith(incomplete))


def complete_model(incomplete: str) -> Iterator[str]:
    """The named encoders, and the weights known by name."""
    from epic_search.encoder.weights import KNOWN

    yield from complete_encoder(incomplete)
    yield from (name for name in KNOWN if name.startswith(incomplete))
