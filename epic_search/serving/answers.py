"""What is answered to each request: the searcher's and the encoder's results in the form of `schemas`."""

import base64
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from epic_search.encoder.prompt import Demonstration
from epic_search.errors import UserError
from epic_search.index import taught_pair
from epic_search.index.answer import Question, ask
from epic_search.index.suggest import suggest as suggestions
from epic_search.index.taught import as_stored
from epic_search.index.taught_pair import TaughtPair
from epic_search.serving import limits, schemas
from epic_search.serving.problems import ApiError

if TYPE_CHECKING:
    from epic_search.index import Searcher
    from epic_search.serving.shared import SharedEncoder
    from epic_search.serving.shelf import Shelf


class Indexes(Protocol):
    """Open indexes by name."""

    def use(self, name: str | None) -> AbstractContextManager["Searcher"]:
        """One of them, or the first; raises UserError or ApiError for one that is not there."""


def search(indexes: "Indexes", asked: schemas.SearchRequest) -> schemas.SearchAnswer:
    """The hits of each query; raises UserError where `Searcher.search` does."""
    with indexes.use(asked.index) as searcher:
        answers, facets = ask(searcher, asked.texts, question(asked))
        return schemas.SearchAnswer(
            index=searcher.manifest.name,
            offset=asked.offset,
            results=[schemas.ResultAnswer.model_validate(answer.as_json()) for answer in answers],
            facets={
                field: [schemas.FacetAnswer(value=value, documents=count) for value, count in counts]
                for field, counts in facets.items()
            },
        )


def question(asked: schemas.SearchRequest) -> Question:
    """A request in the search engine's terms."""
    names = {field.name for field in fields(Question)} - {"demonstrations", "demos"}
    same: dict[str, Any] = {name: getattr(asked, name) for name in names}
    match asked.demonstrations:
        case list(pairs):
            shown = [Demonstration(query=pair.query, passage=pair.passage) for pair in pairs]
            return Question(**same, demonstrations=shown)
        case mode:
            return Question(**same, demos=mode)


def embeddings(shelf: "Shelf", asked: schemas.EmbeddingRequest) -> schemas.EmbeddingsAnswer:
    """Vectors; raises ApiError for an unknown model and for a text that it would not read whole."""
    encoder = shelf.encoders().get(asked.model)
    if encoder is None:
        raise _no_model(shelf, asked.model)
    if asked.dimensions is not None:
        encoder.checkpoint.truncated(asked.dimensions)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    tokens = _tokens(encoder, texts)
    if asked.input_type == "query":
        vectors_NE = encoder.encode_queries(texts, prompt=encoder.prompt(task=asked.task), whole=True)
    else:
        vectors_NE = encoder.encode_passages(texts, whole=True)
    vectors_NE = as_stored(vectors_NE, asked.dimensions or vectors_NE.shape[1])
    data = [
        schemas.EmbeddingAnswer(
            index=i, embedding=_base64(row_E) if asked.encoding_format == "base64" else row_E.tolist()
        )
        for i, row_E in enumerate(vectors_NE)
    ]
    usage = schemas.UsageAnswer(prompt_tokens=tokens, total_tokens=tokens)
    return schemas.EmbeddingsAnswer(data=data, model=asked.model, usage=usage)


def model(shelf: "Shelf", name: str) -> schemas.ModelAnswer:
    """One encoder; raises ApiError for an unknown one."""
    for known in models(shelf).data:
        if known.id == name:
            return known
    raise _no_model(shelf, name)


def models(shelf: "Shelf") -> schemas.ModelsAnswer:
    """The encoders."""
    return schemas.ModelsAnswer(
        data=[
            schemas.ModelAnswer(
                id=name,
                created=shelf.opened,
                dimensions=[*(encoder.config.matryoshka or []), encoder.model.dim],
                max_tokens=encoder.config.max_length,
                fingerprint=encoder.fingerprint,
            )
            for name, encoder in shelf.encoders().items()
        ]
    )


def indexes(shelf: "Shelf") -> schemas.IndexesAnswer:
    """The indexes that can be used now."""
    found = []
    for name in shelf.names:
        try:
            with shelf.use(name) as searcher:
                found.append(_index(searcher))
        except (ApiError, UserError):
            continue  # it is gone, or in other hands: whoever asks for it is told
    return schemas.IndexesAnswer(indexes=found)


def document(indexes: "Indexes", index: str, document_id: str) -> schemas.DocumentAnswer:
    """A document; raises ApiError for one that is not in the index."""
    with indexes.use(index) as searcher:
        found = searcher.document(document_id)
    if found is None:
        raise ApiError(404, f"index '{index}' has no document '{document_id}'", "ids are those of the hits of a search")
    return schemas.DocumentAnswer(**asdict(found))


def corpus_map(shelf: "Shelf", index: str, document_ids: Sequence[str] | None = None) -> schemas.MapAnswer:
    """Where these documents lie, or a sample of all."""
    with shelf.use(index) as searcher:
        spots = searcher.map.sample() if document_ids is None else searcher.map.spots(document_ids)
    return schemas.MapAnswer(
        index=index,
        ids=[spot.id for spot in spots],
        titles=[spot.title for spot in spots],
        x=[spot.x for spot in spots],
        y=[spot.y for spot in spots],
    )


def demonstrations(shelf: "Shelf", index: str) -> schemas.DemonstrationsAnswer:
    """What the index was taught."""
    with shelf.use(index) as searcher:
        return schemas.DemonstrationsAnswer(index=index, taught=_pairs(searcher.taught()))


def teach(shelf: "Shelf", index: str, asked: schemas.TeachRequest) -> schemas.TeachAnswer:
    """Teach pairs, which are safely stored when this returns; raises UserError where `Searcher.teach` does."""
    lessons = []
    for lesson in asked.lessons:
        if lesson.documents is None:
            lessons.append(taught_pair.Lesson(lesson.query, passage=lesson.passage))
        else:
            lessons += [taught_pair.Lesson(lesson.query, document=document) for document in lesson.documents]
    with shelf.change(index) as searcher:
        new = searcher.teach_all(lessons)
        known = len({(lesson.query.strip(), lesson.document, lesson.passage) for lesson in lessons}) - len(new)
        return schemas.TeachAnswer(index=index, taught=_pairs(new), known=known, total=searcher.manifest.taught)


def forget(shelf: "Shelf", index: str, asked: schemas.ForgetRequest) -> schemas.ForgottenAnswer:
    """Take back taught pairs; raises ApiError where it is not clear which, and UserError as `Searcher.forget`."""
    if (asked.query is None) != asked.everything:
        raise ApiError(422, "what is to go is not clear", "give either 'query' or 'everything' as true")
    if asked.everything and asked.labels:
        raise ApiError(422, "labels name pairs of one query", "give 'query' too, or leave them out")
    with shelf.change(index) as searcher:
        if asked.query is None:
            gone = searcher.taught()
            searcher.forget_all()
        else:
            gone = searcher.forget(asked.query, asked.labels)
        return schemas.ForgottenAnswer(index=index, forgotten=_pairs(gone), total=searcher.manifest.taught)


def suggest(shelf: "Shelf", index: str, asked: schemas.SuggestRequest) -> schemas.SuggestAnswer:
    """What is worth teaching next; raises UserError where `suggest.suggest` does."""
    with shelf.use(index) as searcher:
        found = suggestions(searcher, asked.queries, count=asked.count, by=asked.by)
        said = [schemas.SuggestionAnswer.model_validate(asdict(one)) for one in found]
        return schemas.SuggestAnswer(index=index, suggestions=said)


def _no_model(shelf: "Shelf", name: str) -> ApiError:
    return ApiError(404, f"there is no model '{name}'", f"there are {', '.join(shelf.encoders())}")


def _index(searcher: "Searcher") -> schemas.IndexAnswer:
    manifest = searcher.manifest
    return schemas.IndexAnswer(
        name=manifest.name,
        documents=manifest.documents,
        passages=manifest.passages,
        encoder=manifest.encoder,
        dim=manifest.dim,
        task=manifest.task,
        demonstrations=len(manifest.demonstrations),
        taught=manifest.taught,
        modes=["dense"] if manifest.lexical is None else ["hybrid", "dense", "lexical"],
        fields=searcher.fields,
        updated=manifest.updated,
    )


def _pairs(pairs: Sequence[TaughtPair]) -> list[schemas.TaughtAnswer]:
    return [schemas.TaughtAnswer(label=taught_pair.label(pair), **asdict(pair)) for pair in pairs]


def _tokens(encoder: "SharedEncoder", texts: Sequence[str]) -> int:
    """How many tokens the texts have; raises ApiError for one that would be cut."""
    longest = encoder.config.max_length
    lengths = [len(ids) for ids in encoder.token_ids(texts, max_length=limits.TEXT_CHARACTERS)]
    for i, length in enumerate(lengths):
        if not texts[i].strip():
            raise ApiError(422, f"text {i} of 'input' is empty", "leave it out")
        if length > longest:
            raise ApiError(
                422, f"text {i} of 'input' has {length} tokens, and the model reads {longest}", "cut it into passages"
            )
    return sum(lengths)


def _base64(row_E: np.ndarray) -> str:
    return base64.b64encode(row_E.astype("<f4").tobytes()).decode("ascii")
