"""What clients send and get, as pydantic models: they check requests and are the schema at /openapi.json."""

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from epic_search.index.filters import FieldType
from epic_search.index.searcher import Mode
from epic_search.index.ways import Demos
from epic_search.serving.limits import (
    MAX_K,
    MAX_OFFSET,
    MAX_PAIRS,
    MAX_QUERIES,
    MAX_SPOTS,
    MAX_SUGGESTED,
    MAX_TEXTS,
    QUERY_CHARACTERS,
    TEXT_CHARACTERS,
)

Query = Annotated[str, Field(min_length=1, max_length=QUERY_CHARACTERS)]
Task = Annotated[str, Field(max_length=QUERY_CHARACTERS)]
Text = Annotated[str, Field(min_length=1, max_length=TEXT_CHARACTERS)]
DocumentId = Annotated[str, Field(min_length=1, max_length=QUERY_CHARACTERS)]
FieldName = Annotated[str, Field(min_length=1, max_length=300)]
IndexName = Annotated[str, Field(min_length=1, max_length=100, description="Default: the index that is served first.")]

TEXT, LIST = Tag("(a text)"), Tag("(a list)")
TAGS = (TEXT.tag, LIST.tag)
"""What pydantic puts among the names of fields for which type a value was taken to be of."""


def text_or_list(otherwise: str) -> Discriminator:
    """Chooses between two types of a value, tagged TEXT and LIST; `otherwise` is said of a value that is neither."""
    return Discriminator(
        lambda value: TEXT.tag if isinstance(value, str) else LIST.tag if isinstance(value, list) else None,
        custom_error_type="neither",
        custom_error_message=otherwise,
    )


class Request(BaseModel):
    """A body. Keys that it does not know are mistakes, and so are values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for key in value:
            if key not in cls.model_fields:
                near = get_close_matches(str(key), cls.model_fields, n=1)
                meant = f"did you mean '{near[0]}'? " if near else ""
                allowed = {"hint": f"{meant}allowed are {', '.join(cls.model_fields)}"}
                raise PydanticCustomError("allowed_keys", "there is no '{key}'", {"key": str(key)[:100], **allowed})
        return value


class DemonstrationPair(Request):
    """An example: for this query, that passage is right."""

    query: Query
    passage: Text


class SearchRequest(Request):
    """A search. Give `query`, or several as `queries`."""

    query: Query | None = None
    queries: Annotated[list[Query], Field(min_length=1, max_length=MAX_QUERIES)] | None = None
    index: IndexName | None = None
    k: Annotated[int, Field(ge=1, le=MAX_K, description="How many documents for each query.")] = 10
    offset: Annotated[int, Field(ge=0, le=MAX_OFFSET, description="Leave out so many of the best.")] = 0
    mode: Annotated[
        Mode | None,
        Field(
            description="Rank by meaning (dense), by words (lexical), or both; default: both where the index has words."
        ),
    ] = None
    filter: Annotated[
        str | None,
        Field(max_length=QUERY_CHARACTERS, description="Only documents that pass: year>=2020 and lang in (en, de)"),
    ] = None
    facets: Annotated[
        list[FieldName],
        Field(max_length=16, description="Count the documents that pass by their values of these fields."),
    ] = []
    group_by: Annotated[FieldName, Field(description="The best hit of each document, or of each value of a field.")] = (
        "document"
    )
    min_score: Annotated[float | None, Field(allow_inf_nan=False, description="Leave out hits of a lower score.")] = (
        None
    )
    explain: Annotated[bool, Field(description="Say why hits are where they are.")] = False
    task: Annotated[Task, Field(description="What a query asks for, instead of the index's own task.")] | None = None
    demonstrations: (
        Annotated[
            Annotated[Demos, TEXT] | Annotated[list[DemonstrationPair], Field(max_length=64), LIST],
            Field(description="The index's own, the taught pairs most like the query, none, or these."),
            text_or_list(
                "'demonstrations' is neither a word nor a list of pairs; "
                f"send one of {', '.join(get_args(Demos))}, or pairs such as [{{'query': '...', 'passage': '...'}}]"
            ),
        ]
        | None
    ) = None
    demos_k: Annotated[int, Field(ge=1, le=64, description="How many pairs 'nearest' takes.")] | None = None
    boost: (
        Annotated[
            float,
            Field(ge=0, le=100, allow_inf_nan=False, description="How strongly what was taught moves a query; 0: not."),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Self:
        if (self.query is None) == (self.queries is None):
            raise PydanticCustomError("allowed_keys", "give either 'query' or 'queries'", {"hint": "give one of them"})
        return self

    @property
    def texts(self) -> list[str]:
        """The queries."""
        return self.queries or [self.query or ""]


class HitAnswer(BaseModel):
    """A document found: its best passage, that passage's score, and what else was indexed with it."""

    id: str
    score: float
    title: str
    text: str
    payload: dict[str, Any]
    explanation: Annotated[
        dict[str, Any] | None, Field(description="Rank and score in each ranking, and the query's words it has.")
    ] = None


class ResultAnswer(BaseModel):
    """What was found for a query, best first. `score`: what the scores mean."""

    query: str
    mode: Mode
    score: str
    hits: list[HitAnswer]
    taught: Annotated[
        dict[str, Any] | None, Field(description="The taught pairs that were used, and the ranks without them.")
    ] = None
    remark: str | None = None


class FacetAnswer(BaseModel):
    """A value of a field, and how many documents have it."""

    value: str | int | bool
    documents: int


class SearchAnswer(BaseModel):
    """A result for each query, in the order asked. `facets` count the documents that pass the filter."""

    index: str
    offset: int
    results: list[ResultAnswer]
    facets: dict[str, list[FacetAnswer]]


class EmbeddingRequest(Request):
    """As OpenAI's, with `input_type` and `task` besides.

    A passage is encoded as documents are for an index, a query under a task.
    """

    input: Annotated[
        Annotated[Text, TEXT] | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS), LIST],
        text_or_list('\'input\' is neither a text nor a list of texts; send "a text" or ["a text", "another"]'),
    ]
    model: Annotated[str, Field(min_length=1, max_length=300)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    input_type: Literal["passage", "query"] = "passage"
    task: Annotated[Task, Field(description="What queries ask for; only with input_type 'query'.")] | None = None
    user: Annotated[str, Field(max_length=QUERY_CHARACTERS, description="Ignored.")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _texts_only(cls, value: Any) -> Any:
        given = value.get("input") if isinstance(value, dict) else None
        while isinstance(given, list) and given:
            given = given[0]
        if isinstance(given, int) and not isinstance(given, bool) and given is not value["input"]:
            hint = "send texts (for LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
            raise PydanticCustomError("allowed_keys", "token ids are of another model's tokenizer", {"hint": hint})
        return value

    @model_validator(mode="after")
    def _task_of_queries(self) -> Self:
        if self.task is not None and self.input_type == "passage":
            hint = 'send "input_type": "query" too, or leave \'task\' out'
            raise PydanticCustomError("allowed_keys", "passages are encoded without a task", {"hint": hint})
        return self


class EmbeddingAnswer(BaseModel):
    """A vector: numbers, or their bytes (float32, little-endian) in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class UsageAnswer(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """A vector of unit length for each text, in the order given."""

    object: Literal["list"] = "list"
    data: list[EmbeddingAnswer]
    model: str
    usage: UsageAnswer


class ModelAnswer(BaseModel):
    """An encoder. `dimensions`: those that it can be asked for; `max_tokens`: how long a text may be."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "epic-search"
    dimensions: list[int]
    max_tokens: int
    fingerprint: str


class ModelsAnswer(BaseModel):
    """The encoders of the indexes."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class IndexAnswer(BaseModel):
    """An index. `demonstrations`: stored with it; `taught`: pairs taught to it; `fields`: those that filters know."""

    name: str
    documents: int
    passages: int
    encoder: str
    dim: int
    task: str | None
    demonstrations: int
    taught: int
    modes: list[Mode]
    fields: dict[str, FieldType]
    updated: str


class IndexesAnswer(BaseModel):
    """All that are served."""

    indexes: list[IndexAnswer]


class DocumentAnswer(BaseModel):
    """A document as it is indexed; each passage repeats the end of the one before."""

    id: str
    title: str
    passages: list[str]
    payload: dict[str, Any]


class PlacesRequest(Request):
    """Documents whose places on the map are wanted."""

    documents: Annotated[list[DocumentId], Field(min_length=1, max_length=MAX_SPOTS)]


class MapAnswer(BaseModel):
    """Documents in a plane, those of alike texts near each other; `x` and `y`, from -1 to 1, in the order of `ids`."""

    index: str
    ids: list[str]
    titles: list[str]
    x: list[float]
    y: list[float]


class Lesson(Request):
    """What is to be taught: for this query these documents are right, or this passage."""

    query: Text
    documents: Annotated[list[DocumentId], Field(min_length=1, max_length=MAX_PAIRS)] | None = None
    passage: Text | None = None

    @model_validator(mode="after")
    def _one_thing_is_right(self) -> Self:
        if (self.documents is None) == (self.passage is None):
            hint = "'documents' holds ids as a search returns them"
            raise PydanticCustomError("allowed_keys", "give either 'documents' or 'passage'", {"hint": hint})
        return self


class TeachRequest(Request):
    """What is to be taught; all of it or, after a mistake, nothing."""

    lessons: Annotated[list[Lesson], Field(min_length=1, max_length=MAX_PAIRS)]


class ForgetRequest(Request):
    """What is to be forgotten: the pairs of a query, those of its pairs with these labels, or all of all queries."""

    query: Text | None = None
    labels: Annotated[list[DocumentId], Field(max_length=MAX_PAIRS)] = []
    everything: bool = False


class SuggestRequest(Request):
    """What is worth teaching next. `queries`: to choose from; without any, titles of documents are.

    `by`: see `epic-search teach suggest`; the default is margin for queries and coverage for titles.
    """

    queries: Annotated[list[Query], Field(min_length=1, max_length=MAX_SUGGESTED)] | None = None
    count: Annotated[int, Field(ge=1, le=MAX_SUGGESTED)] = 10
    by: Literal["margin", "coverage"] | None = None


class SuggestionAnswer(BaseModel):
    """A query to judge, and its best hit.

    `margin`: by how much the best document's cosine is above the second's; `similarity`: to the nearest taught query.
    """

    query: str
    hit: HitAnswer
    margin: float
    similarity: float | None


class SuggestAnswer(BaseModel):
    """What is worth judging, the first first."""

    index: str
    suggestions: list[SuggestionAnswer]


class TaughtAnswer(BaseModel):
    """A pair. `label`: names it among those of its query; `stale`: its document is not in the index now."""

    query: str
    label: str
    document: str | None
    title: str
    passage: str
    taught: str
    stale: bool


class TeachAnswer(BaseModel):
    """The pairs that are new, how many were known before, and how many there are."""

    index: str
    taught: list[TaughtAnswer]
    known: int
    total: int


class DemonstrationsAnswer(BaseModel):
    """The pairs taught to an index, oldest first."""

    index: str
    taught: list[TaughtAnswer]


class ForgottenAnswer(BaseModel):
    """The pairs that are no more, and how many are left."""

    index: str
    forgotten: list[TaughtAnswer]
    total: int


class StatusAnswer(BaseModel):
    """How the server is."""

    status: str
