"""Documents cut into passages: what is encoded, and what a hit shows."""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epic_search.index.corpus import Document

if TYPE_CHECKING:
    from epic_search.encoder import Encoder

# The part of a passage's tokens that it shares with the next, so that no sentence is only seen cut in two.
OVERLAP_PART = 8
# Part of every version: a new way of cutting makes all documents count as changed.
CUTTING = f"1 overlap=1/{OVERLAP_PART}".encode()
NAMESPACE = uuid.UUID("b3a1c9a4-6a0e-5d5b-9a6e-0d5d3c1f7e21")


@dataclass(frozen=True, slots=True)
class CutDocument:
    """A document with its passages and, for each, the text that the encoder reads.

    `version` names exactly this content, cut in exactly this way.
    """

    document: Document
    version: bytes
    passages: list[str]
    texts: list[str]


def version(document: Document) -> bytes:
    """32 bytes that change when the document or the way of cutting does."""
    return hashlib.sha256(CUTTING + document.digest).digest()


def point_id(document_id: str, document_version: bytes, number: int) -> str:
    """The store's id of a document's passage.

    The version is part of it: a changed document is written beside the old one, which goes only when the new
    one is safe.
    """
    return str(uuid.uuid5(NAMESPACE, f"{document_version.hex()}/{number}/{document_id}"))


def cut(documents: Sequence[Document], encoder: "Encoder") -> list[CutDocument]:
    """Each document in passages that the encoder reads whole, each with the title in front."""
    overlap = encoder.config.max_length // OVERLAP_PART
    joined = encoder.split([_with_title(document, document.text) for document in documents], overlap=overlap)
    return [_cut(document, pieces, encoder, overlap) for document, pieces in zip(documents, joined, strict=True)]


def _cut(document: Document, joined: list[str], encoder: "Encoder", overlap: int) -> CutDocument:
    """One document cut; `joined`: its title and text cut as one."""
    passages = [document.text]
    if len(joined) > 1:
        title_tokens = len(encoder.token_ids([_with_title(document, "")])[0])
        if overlap + title_tokens >= encoder.config.max_length // 2:
            # A title that would fill most of each passage is treated as the beginning of the text.
            return CutDocument(document, version(document), joined, joined)
        # The encoder stops reading at its limit, and the title takes part of that: overlapping by as many tokens
        # more, the next passage begins before what the title pushes out, and what it pushes out of the last passage
        # becomes one more.
        passages = encoder.split([document.text], overlap=overlap + title_tokens)[0]
        passages += encoder.split([_with_title(document, passages[-1])], overlap=overlap)[0][1:]
    return CutDocument(document, version(document), passages, [_with_title(document, text) for text in passages])


def _with_title(document: Document, text: str) -> str:
    return f"{document.title}\n{text}" if document.title else text
