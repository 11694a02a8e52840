"""Texts to token ids, through the Rust tokenizer alone: transformers' wrapper costs seconds and adds nothing here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer of a model folder, truncation and padding off, special tokens in texts read as plain text."""
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # A document that contains "<|im_end|>" must not end the input: what users write is text.
    tokenizer.encode_special_tokens = True
    return tokenizer


def token_ids(tokenizer: "Tokenizer", texts: Sequence[str], *, max_length: int | None) -> list[list[int]]:
    """Token ids of each text, without special tokens, cut at `max_length` (None: whole)."""
    return [
        encoding.ids[:max_length] for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    ]


def beginnings(tokenizer: "Tokenizer", texts: Sequence[str], *, max_length: int) -> tuple[list[str], list[list[int]]]:
    """The first `max_length` tokens of each text: as text and as ids."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    cut = [
        text if len(encoding) <= max_length else text[: encoding.offsets[max_length - 1][1]]
        for text, encoding in zip(texts, encodings, strict=True)
    ]
    return cut, [encoding.ids[:max_length] for encoding in encodings]


def spans(tokenizer: "Tokenizer", text: str, *, max_length: int, overlap: int) -> list[str]:
    """A text cut into pieces of at most `max_length` tokens, each repeating about `overlap` tokens of the one before.

    Cuts fall on token boundaries, moved back to white space where there is some in the last quarter of a piece.
    """
    assert 0 <= overlap < max_length // 2, (overlap, max_length)
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    if len(offsets) <= max_length:
        return [text]
    pieces: list[str] = []
    first = 0
    while True:
        last = min(first + max_length, len(offsets))
        if last < len(offsets):
            last = _word_boundary(text, offsets, first + max_length * 3 // 4, last)
        piece = text[offsets[first][0] : offsets[last - 1][1]].strip()
        # A piece by itself may read as a few more tokens than it had inside the text.
        while (excess := len(tokenizer.encode(piece, add_special_tokens=False)) - max_length) > 0:
            last -= excess
            piece = text[offsets[first][0] : offsets[last - 1][1]].strip()
        if piece:
            pieces.append(piece)
        if last == len(offsets):
            return pieces
        first = max(first + 1, last - overlap)


def _word_boundary(text: str, offsets: list[tuple[int, int]], lowest: int, last: int) -> int:
    """The largest end in (lowest, last] before which a new word starts; `last` if there is none."""
    for end in range(last, lowest, -1):
        start = offsets[end][0]
        if text[start].isspace() or (start > 0 and text[start - 1].isspace()):
            return end
    return last
