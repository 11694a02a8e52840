"""A corpus: documents from files, folders, standard input and data sets, one at a time, whatever their format.

It never has to fit into memory. A row that cannot be used is skipped, counted and named with its place; `strict` stops
at the first.
"""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from epic_search.errors import UserError
from epic_search.index.document import Document, Problem, Problems, Unusable
from epic_search.index.sources import STDIN, open_sources
from epic_search.index.sources.fields import Fields, choose_columns, document
from epic_search.index.sources.protocol import Columns, Format, Row, Source

ORIGINS = 10  # kept of the names of many sources
SAMPLE_ROWS = 100  # looked at to guess which fields are id, text and title
SAMPLE_CHARACTERS = 2**20


class Corpus:
    """The documents of one or more sources, in their order. Iterate once; then `problems` tells what was skipped.

    A source is a file (JSON lines, a JSON array, CSV, TSV, Parquet; gzip and zstd), a folder or pattern of text files,
    `-` for standard input, or a data set as hf:NAME. `format` is for those whose name does not tell it. `tell` gets
    sentences for the user: what was guessed, and what is left out. `origin`: the sources as absolute paths. Raises
    UserError when a source is not there, ends early or has no such fields, and, if strict, at the first bad row.
    """

    def __init__(
        self,
        *sources: str | Path,
        format: Format | None = None,
        fields: Fields | None = None,
        strict: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        names = [str(source) for source in sources]
        first = "standard input" if names[0] == STDIN else names[0]
        self.name = first if len(names) == 1 else f"{first} and {len(names) - 1:,} more"
        self.origin = ", ".join(str(Path(name).resolve()) if Path(name).exists() else name for name in names[:ORIGINS])
        self.strict = strict
        self.problems = Problems()
        self._fields = fields or Fields()
        self._tell = tell or (lambda _: None)
        self._told: set[str] = set()
        self._sources = open_sources(names, format=format)
        sizes = [source.bytes_total for source in self._sources]
        self.bytes_total = sum(sizes) if all(sizes) else 0
        self._bytes_done = 0
        self._current: Source | None = None
        self._documents = self._read()
        self._has_some = False

    def close(self) -> None:
        """Close what is open."""
        for source in self._sources:
            source.close()

    def __enter__(self) -> "Corpus":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def bytes_read(self) -> int:
        """How many of `bytes_total` have been read; of compressed files, as they lie on the disk."""
        return self._bytes_done + (self._current.bytes_read if self._current is not None else 0)

    def __iter__(self) -> Iterator[Document]:
        return self._documents

    def require_some(self) -> None:
        """Read as far as the first document, which stays to be read; raises UserError when there is none."""
        if self._has_some:
            return
        first = next(self._documents, None)
        if first is None:
            count = self.problems.total
            skipped = (
                f"all {count:,} rows were skipped, the first as {self.problems.first[0]}" if count else "it is empty"
            )
            raise UserError(f"{self.name} holds no document ({skipped}); a document has an id and a text")
        self._documents = chain([first], self._documents)
        self._has_some = True

    def skip(self, problem: Problem) -> None:
        """Report a row that is not used; raises UserError if strict."""
        if self.strict:
            raise UserError(f"{self.name}, {problem}; correct it, or leave out --strict to skip such rows")
        self.problems.add(problem)

    def _read(self) -> Iterator[Document]:
        for source in self._sources:
            self._current = source
            yield from self._documents_of(source)
            source.close()
            self._current = None
            self._bytes_done += source.bytes_total

    def _documents_of(self, source: Source) -> Iterator[Document]:
        self._tell_once(source.remark)
        rows = source.rows()
        columns = source.columns
        if columns is None:
            sample = list(_sample(rows))
            columns = self._columns(source, sample)
            rows = chain(sample, rows)
        for row in rows:
            # A text file's place has the folder's name in it.
            place = (
                row.place if len(self._sources) == 1 or source.columns is not None else f"{source.name}, {row.place}"
            )
            try:
                if isinstance(row.values, Unusable):
                    raise row.values
                yield document(row.values, columns, place=place)
            except Unusable as error:
                self.skip(Problem(place, error.kind, error.detail, row.id))

    def _columns(self, source: Source, sample: list[Row]) -> Columns:
        names = dict.fromkeys(name for row in sample if isinstance(row.values, dict) for name in row.values)
        columns, guessed = choose_columns(self._fields, names, source=source.name, naming=source.naming)
        self._tell_once(guessed)
        return columns

    def _tell_once(self, sentence: str) -> None:
        if sentence and sentence not in self._told:
            self._told.add(sentence)
            self._tell(sentence)


def _sample(rows: Iterator[Row]) -> Iterator[Row]:
    """The first rows, as many as are enough to see which fields there are."""
    characters = 0
    for row in islice(rows, SAMPLE_ROWS):
        yield row
        if isinstance(row.values, dict):
            characters += sum(len(value) for value in row.values.values() if isinstance(value, str))
        if characters > SAMPLE_CHARACTERS:
            return
