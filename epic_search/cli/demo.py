"""`epic-search demo`: all of it, on text that every machine has: the documentation inside Python itself."""

import json as jsonlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epic_search.cli import console, options
from epic_search.cli.index import load_encoder, print_report, run
from epic_search.errors import UserError

if TYPE_CHECKING:
    from epic_search.encoder import Encoder
    from epic_search.index import Hit, Searcher

INDEX = "python-stdlib"
SECONDS = 140.0  # how long encoding may take: a fresh machine also has to install and to load
SAMPLE = 96  # documents that are encoded to find out how fast this machine is
HITS = 3
QUESTIONS = (
    "how do I read a csv file with named columns",
    "run a shell command and capture its output",
    "which day of the week is a date",
)
TAUGHT, RIGHT, RELATED = "copy a directory tree", "shutil.copytree", "copy a whole folder"


def demo(
    all_documents: Annotated[
        bool,
        typer.Option("--all", help="Index everything, however long it takes. Continues where the last demo stopped."),
    ] = False,
    home: options.Home = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Index the documentation inside your own Python, then ask it questions.

    Encodes for up to three minutes the first time, and leaves the index for you.
    """
    from epic_search.encoder.checkpoint import DEFAULT_MODEL
    from epic_search.index import Searcher
    from epic_search.index import home as default_home
    from epic_search.index.answer import hits_as_json
    from epic_search.stdlib import documents

    folder = home or default_home()
    with console.working("reading the documentation of the Python standard library"):
        # What is taught stands first: a slow machine indexes only a part.
        found = sorted(documents(), key=lambda document: document["_id"] != RIGHT)
    encoder = load_encoder(DEFAULT_MODEL, device=device, dtype=dtype)
    corpus = folder / f"{INDEX}.jsonl"
    _drop_outdated(corpus, encoder)
    count = len(found) if all_documents else _affordable(found, encoder, corpus)
    if not json:
        print(f"indexing {count:,} of the {len(found):,} documented things in your Python's standard library")
    _write(corpus, found[:count])
    report = run(corpus, name=INDEX, encoder=encoder, home=folder, prune=True)
    with Searcher.open(INDEX, home=folder, encoder=encoder) as searcher:
        answers = list(zip(QUESTIONS, searcher.search(QUESTIONS, k=HITS), strict=True))
        without, taught = _teach(searcher)
    if json:
        console.print_json(
            {
                "index": INDEX,
                "documents": report.documents,
                "questions": [{"query": question, "hits": hits_as_json(hits)} for question, hits in answers],
                "taught": {
                    "query": TAUGHT,
                    "document": RIGHT,
                    "related": RELATED,
                    "without": hits_as_json(without),
                    "with": hits_as_json(taught),
                },
            }
        )
        return
    print_report(report)
    for question, hits in answers:
        _show(question, hits)
    _show(RELATED, without)
    print(f'\nNow it is taught that for "{TAUGHT}", {RIGHT} is right. The question above is another one:')
    _show(RELATED, taught)
    same = [hit.id for hit in without] == [hit.id for hit in taught]
    print(f"\nThis {'did not change the order of these hits' if same else 'changed the hits'}; it is forgotten again.")
    _next_steps(count, len(found), corpus)


def _drop_outdated(corpus: Path, encoder: "Encoder") -> None:
    """Delete the last demo's index if another version of the encoder made it."""
    from epic_search.index import delete_index
    from epic_search.index.manifest import MANIFEST_FILE, Manifest

    folder = corpus.parent / INDEX
    if not (folder / MANIFEST_FILE).is_file():
        return
    manifest = Manifest.load(folder)
    if manifest.fingerprint != encoder.fingerprint and manifest.source == str(corpus.resolve()):
        console.note(f"the index {INDEX!r} of an earlier demo was made by another encoder: making it anew")
        delete_index(INDEX, corpus.parent)
        corpus.unlink(missing_ok=True)


def _affordable(found: Sequence[dict[str, str]], encoder: "Encoder", corpus: Path) -> int:
    """How many documents this machine encodes in SECONDS, or as many as the last demo chose."""
    if corpus.is_file():
        with corpus.open(encoding="utf-8") as lines:
            return min(len(found), sum(1 for _ in lines))
    sample = found[:: max(1, len(found) // SAMPLE)]
    with console.working("measuring how fast this machine encodes"):
        started = time.monotonic()
        encoder.encode_passages([f"{document['title']}\n{document['text']}" for document in sample])
        seconds = time.monotonic() - started
    return min(len(found), max(SAMPLE, int(SECONDS * len(sample) / seconds)))


def _write(corpus: Path, documents: Sequence[dict[str, str]]) -> None:
    part = corpus.with_name(corpus.name + ".part")
    try:
        corpus.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            file.writelines(jsonlib.dumps(document) + "\n" for document in documents)
        part.replace(corpus)
    except OSError as error:
        raise UserError(
            f"cannot write {corpus}: {error.strerror}; choose a folder that you may write to with --home"
        ) from error


def _teach(searcher: "Searcher") -> "tuple[list[Hit], list[Hit]]":
    """Hits of the related question before and after the pair is taught; the index is left as it was."""
    without = searcher.search([RELATED], k=HITS)[0]
    new = searcher.teach(TAUGHT, [RIGHT])
    try:
        return without, searcher.search([RELATED], k=HITS)[0]
    finally:
        if new:  # else the user taught it
            searcher.forget(TAUGHT, [RIGHT])


def _show(question: str, hits: "Sequence[Hit]") -> None:
    print(f"\n? {question}")
    console.print_hits(hits, query=question)


def _next_steps(count: int, total: int, corpus: Path) -> None:
    print(f"\nThe index stays. The documents are in {corpus}. Try:")
    print('  epic-search query "your own question"')
    print(f"  epic-search serve {INDEX}   # and teach it in your browser")
    if count < total:
        print(f"  epic-search demo --all      # index all {total:,}")
    print("  epic-search index YOUR-CORPUS.jsonl")
    print("  epic-search train           # train on this documentation, then see the difference")
