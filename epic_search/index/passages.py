"""Documents cut into passages: what is encoded, and what a hit shows."""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epic_search.index.document import Document

if TYPE_CHECKING:
    from epic_search.encoder import Encoder

# Part of every version: a new way of cutting makes all documents count as changed.
CUTTING = b"2"
NAMESPACE = uuid.UUID("b3a1c9a4-6a0e-5d5b-9a6e-0d5d3c1f7e21")


@dataclass(frozen=True, slots=True)
class CutDocument:
    """A document with its passages and, for each, the text that the encoder reads.

    `version` names exactly this content, cut in exactly this way; `ids` are the token ids of `texts`.
    """

    document: Document
    version: bytes
    passages: list[str]
    texts: list[str]
    ids: list[list[int]]


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
    half = encoder.config.max_length // 2
    title_ids = encoder.token_ids([f"{document.title}\n" for document in documents])
    # A title that would fill most of each passage is treated as the beginning of the text, and one without a text
    # is the text.
    titles = [
        document.title if len(ids) <= half and document.text.strip() else ""
        for document, ids in zip(documents, title_ids, strict=True)
    ]
    texts = [d.text if title else _with_title(d.title, d.text) for d, title in zip(documents, titles, strict=True)]
    known = _ids_of_whole([_with_title(title, text) for title, text in zip(titles, texts, strict=True)], encoder)
    long = [i for i, ids in enumerate(known) if ids is None]
    pieces = dict(zip(long, encoder.split([texts[i] for i in long], titles=[titles[i] for i in long]), strict=True))
    cut_documents = []
    for i, (document, title, ids) in enumerate(zip(documents, titles, known, strict=True)):
        passages = pieces.get(i, [texts[i]])
        read = [_with_title(title, passage) for passage in passages]
        read_ids = encoder.token_ids(read) if ids is None else [ids]
        cut_documents.append(CutDocument(document, version(document), passages, read, read_ids))
    return cut_documents


def _ids_of_whole(texts: Sequence[str], encoder: "Encoder") -> list[list[int] | None]:
    """The token ids of each text that the encoder reads whole, None for one that may be too long.

    Tokens of more than eight characters on average are rare, and of a long text only a part is looked at.
    """
    longest = encoder.config.max_length
    found = encoder.token_ids([text[: 8 * longest] for text in texts])
    return [
        ids if len(ids) < longest and len(text) <= 8 * longest else None for text, ids in zip(texts, found, strict=True)
    ]


def encoded_text(title: str, passage: str, encoder: "Encoder") -> str:
    """What the encoder read of a stored passage: with the title in front where `cut` put it there."""
    takes_room = len(encoder.token_ids([f"{title}\n"])[0]) <= encoder.config.max_length // 2
    return _with_title(title if takes_room and title != passage else "", passage)


def _with_title(title: str, text: str) -> str:
    return f"{title}\n{text}" if title and text.strip() else title or text
