"""Text in, vectors out: the encoder core. Importing this package is cheap; torch loads when `Encoder` is first used."""

from typing import TYPE_CHECKING

from epic_search.encoder.prompt import Demonstration, Prompt

if TYPE_CHECKING:
    from epic_search.encoder.encoder import Encoder

__all__ = ["Demonstration", "Encoder", "Prompt"]


def __getattr__(name: str) -> object:
    if name == "Encoder":
        from epic_search.encoder.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
