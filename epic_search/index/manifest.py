"""What an index is, in `manifest.json`: encoder, prompt, counts. The file marks a folder as an index."""

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from epic_search import __version__
from epic_search.errors import UserError
from epic_search.index.disk import disk_full
from epic_search.index.fields import DOCUMENT_ID
from epic_search.index.fields import Field as DocumentField
from epic_search.index.fields import path as field_path
from epic_search.index.filters import FieldType
from epic_search.index.store.protocol import Schema

if TYPE_CHECKING:
    from epic_search.encoder import Encoder

MANIFEST_FILE = "manifest.json"
FORMAT = 2


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class StoredDemonstration(BaseModel):
    """A demonstration's two texts; their vectors are in `prompt.safetensors`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: str
    passage: str
    names_class: bool = Field(False, exclude_if=lambda names: not names)  # earlier versions read a manifest without it


class StoredLexical(BaseModel):
    """How the BM25 terms of the passages were weighted, see lexical.py."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    average_length: float = Field(ge=1)


class Manifest(BaseModel):
    """The content of `manifest.json`. `status` is "complete" once a whole corpus has gone through.

    `dim` is the width of the vectors; `cut_to` is the same where the encoder could make wider ones, else None.
    `quantize`, `first_stage`: how the store searches, see Schema.
    `lexical` is None for an index without BM25 terms, as all of format 1 are. `fields` are the keys that documents
    have, `types` those of them that filters know.
    `indexed`: when the last run over a source began; "" where an older epic-search ran it.
    `taught`: how many pairs at least its store of taught pairs holds; `demos`, `demos_k`, `boost`: how they are used.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    epic_search: str = __version__
    name: str
    encoder: str
    fingerprint: str
    dim: int = Field(gt=0)
    cut_to: int | None = None
    status: Literal["indexing", "complete"] = "indexing"
    documents: int = Field(default=0, ge=0)
    passages: int = Field(default=0, ge=0)
    task: str | None = None
    demonstrations: list[StoredDemonstration] = []
    taught: int = Field(default=0, ge=0)
    demos: Literal["fixed", "nearest", "none"] = "fixed"
    demos_k: int | None = None
    boost: float | None = None
    fields: list[str] = []
    types: dict[str, DocumentField] = {}
    lexical: StoredLexical | None = None
    quantize: Literal["int8"] | None = None
    first_stage: int | None = None
    source: str = ""
    indexed: str = ""
    created: str = Field(default_factory=now)
    updated: str = Field(default_factory=now)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the manifest of an index folder; raises UserError when it is damaged or of a newer format."""
        path = folder / MANIFEST_FILE
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}; delete the index and index again") from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: object, where: str) -> "Manifest":
        """The manifest in a JSON value that was found `where`; raises UserError as `load` does."""
        given: dict[str, object] = content if isinstance(content, dict) else {}
        version = given.get("format")
        if isinstance(version, int) and version > FORMAT:
            raise UserError(
                f"{where} has format {version}, written by epic-search {given.get('epic_search')}; this is "
                f"{__version__} and reads up to format {FORMAT}: upgrade it, or index under another name"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            part = ".".join(str(part) for part in first["loc"]) or "the top"
            raise UserError(
                f"{where} is damaged at {part}: {first['msg']}; delete the index and index again"
            ) from error

    @property
    def filter_types(self) -> dict[str, FieldType]:
        """The types of the fields that filters know, the document's id among them."""
        return {DOCUMENT_ID: "keyword", **{name: field.type for name, field in self.types.items()}}

    def store_schema(self) -> Schema:
        """What its store's points are made of."""
        fields: dict[str, FieldType] = {field_path(name): field.type for name, field in self.types.items()}
        if self.lexical is not None:
            fields |= {"id": "keyword", "passage": "int"}
        return Schema(
            {"": self.dim},
            lexical=self.lexical is not None,
            fields=fields,
            quantize=self.quantize,
            first_stage=self.first_stage,
        )

    def require_encoder(self, encoder: "Encoder") -> None:
        """Raise UserError unless this encoder made the index: vectors of two encoders cannot be compared."""
        if self.fingerprint != encoder.fingerprint:
            raise UserError(
                f"index '{self.name}' was made by encoder '{self.encoder}' (fingerprint {self.fingerprint[:12]}, "
                f"{self.dim} dimensions), and this is '{encoder.name}' (fingerprint {encoder.fingerprint[:12]}, "
                f"{encoder.dim} dimensions); use that encoder, or index under "
                "another name (or, on a server, make it anew with --rebuild)"
            )

    def save(self, folder: Path) -> None:
        """Write the manifest so that a crash leaves the old one or the new one, never half of one."""
        self.updated, self.format = now(), FORMAT
        self.epic_search = __version__
        try:
            replace_file(folder / MANIFEST_FILE, self.model_dump_json(indent=2).encode("utf-8"))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise disk_full(folder) from error
            raise UserError(
                f"cannot write in {folder}: {error.strerror}; an index needs a folder that you may write to"
            ) from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically and durably: temporary file, fsync, rename, fsync of the folder.

    The temporary file's name is always the same, so what a crash leaves is overwritten.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
