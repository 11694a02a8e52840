"""Text and title of a PDF file, through pypdf (the extra epic-search[pdf])."""

import logging
from importlib.util import find_spec
from io import BytesIO

from epic_search.index.document import Unusable


def can_read() -> bool:
    """Whether pypdf is installed."""
    return find_spec("pypdf") is not None


def title_and_text(content: bytes) -> tuple[str, str]:
    """The title in the file's metadata, or "", and the text of its pages. Raises Unusable where there is none."""
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unusable("PDF with a password")
        text = "\n\n".join(page.extract_text() for page in reader.pages).strip()
        title = (reader.metadata and reader.metadata.title) or ""
    except Unusable:
        raise
    except Exception as error:  # pypdf fails on malformed files in ways of every kind: one file is no reason to stop
        raise Unusable("damaged PDF", f"{type(error).__name__}: {error}") from error
    if not text:
        raise Unusable("PDF without text", "scanned pages need optical character recognition first")
    return _clean(str(title)), _clean(text)


def _clean(text: str) -> str:
    """Without what a font maps to no character at all."""
    return text.encode("utf-8", "ignore").decode("utf-8").replace("\0", "")
