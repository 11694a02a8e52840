"""A question to an index and its answer: what the command line, the HTTP server and the MCP tools ask alike."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

from epic_search.encoder.prompt import Demonstration
from epic_search.errors import UserError
from epic_search.index.explanation import Explanation, Standing
from epic_search.index.prompts import new_prompt
from epic_search.index.searcher import DOCUMENT, SCORES, Hit, Mode, Searcher
from epic_search.index.taught_pair import label
from epic_search.index.ways import Demos, Ways

if TYPE_CHECKING:
    from epic_search.encoder import Prompt
    from epic_search.index.adaptation import Use

DEPTH = 100  # ranks that are looked at without what was taught
ONLY_STOP_WORDS = "the query has only stop words: its hits are ranked by meaning alone"

Facets = dict[str, list[tuple[str | int | bool, int]]]
"""The commonest values of fields, each with its number of documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """How to search: see `Searcher.search`, `Searcher.facets` and `Ways`. None is as the index says.

    `demonstrations` are shown instead of the index's own. `explain`: why hits are where they are. Raises UserError for
    what a lexical search does not read, and for a `min_score` that no score can be compared with.
    """

    k: int = 10
    offset: int = 0
    mode: Mode | None = None
    filter: str | None = None
    facets: Sequence[str] = ()
    group_by: str = DOCUMENT
    min_score: float | None = None
    task: str | None = None
    demonstrations: Sequence[Demonstration] | None = None
    demos: Demos | None = None
    demos_k: int | None = None
    boost: float | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        taught = (self.task, self.demonstrations, self.demos, self.demos_k, self.boost)
        if self.mode == "lexical" and any(given is not None for given in taught):
            raise UserError("a lexical search reads no task and no demonstrations; leave them out, or use mode hybrid")
        if self.min_score is not None and not isfinite(self.min_score):
            raise UserError(f"the least score is {self.min_score}; it must be a number such as 0.4")


@dataclass(frozen=True, slots=True)
class UsedPair:
    """A taught pair near a query: whether it was shown in the prompt, and its weight (0 to 1) in the query's move."""

    query: str
    document: str | None
    label: str
    passage: str
    similarity: float
    shown: bool
    weight: float


@dataclass(frozen=True, slots=True)
class TaughtExplanation:
    """What was changed by what was taught, and by the `fixed` demonstrations of the index that were shown.

    `ranks`: of each hit, now and without all that, None beyond DEPTH.
    """

    demos: Demos
    boost: float
    fixed: int
    pairs: list[UsedPair]
    ranks: dict[str, tuple[int, int | None]]

    def as_json(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "demos": self.demos,
            "boost": self.boost,
            "fixed_demonstrations": self.fixed,
            "pairs": [asdict(pair) for pair in self.pairs],
            "ranks": {id: {"now": now, "without": without} for id, (now, without) in self.ranks.items()},
        }

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "TaughtExplanation":
        """What `as_json` gave."""
        ranks = {id: (rank["now"], rank["without"]) for id, rank in said["ranks"].items()}
        pairs = [UsedPair(**pair) for pair in said["pairs"]]
        return cls(said["demos"], said["boost"], said["fixed_demonstrations"], pairs, ranks)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found for a query, best first. `remark`: what a person should know about it."""

    query: str
    mode: Mode
    hits: list[Hit]
    taught: TaughtExplanation | None = None
    remark: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For other programs; an explanation is there where it was asked for."""
        said: dict[str, Any] = {"query": self.query, "mode": self.mode, "score": SCORES[self.mode]}
        said["hits"] = hits_as_json(self.hits)
        taught = None if self.taught is None else self.taught.as_json()
        return _without_none(said | {"taught": taught, "remark": self.remark}, "taught", "remark")

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "Answer":
        """What `as_json` gave."""
        hits = [Hit(**hit | {"explanation": _explanation(hit.get("explanation"))}) for hit in said["hits"]]
        taught = TaughtExplanation.from_json(said["taught"]) if said.get("taught") else None
        return cls(said["query"], said["mode"], hits, taught, said.get("remark"))


def prompt_of(searcher: Searcher, question: Question) -> "Prompt | None":
    """The prompt that a question asks for instead of the index's own, None for that one."""
    if searcher.mode(question.mode) == "lexical":
        return None
    given = question.demonstrations
    return new_prompt(searcher.manifest, encoder=searcher.encoder, task=question.task, demonstrations=given)


def ask(
    searcher: Searcher, queries: Sequence[str], question: Question, *, prompt: "Prompt | None" = None
) -> tuple[list[Answer], Facets]:
    """The answer to each query, and the facets, which all of them share. Raises UserError where the searcher does.

    `prompt`: what `prompt_of` gave, where many questions are asked alike.
    """
    mode = searcher.mode(question.mode)
    prompt = prompt or prompt_of(searcher, question)
    demos: Demos | None = "fixed" if question.demonstrations is not None else question.demos
    ways = Ways.of(searcher.manifest, demos=demos, demos_k=question.demos_k, boost=question.boost)
    search = partial(searcher.search, mode=mode, prompt=prompt, filter=question.filter, group_by=question.group_by)
    found = search(
        queries,
        k=question.k,
        offset=question.offset,
        ways=ways,
        min_score=question.min_score,
        explained=question.explain,
    )
    answers = []
    for query, hits in zip(queries, found, strict=True):
        taught = None
        if question.explain and mode != "lexical":
            used = searcher.adapt([query], prompt=prompt, ways=ways).uses[0]
            (without,) = search(
                [query], k=max(DEPTH, question.offset + len(hits)), ways=Ways("none", boost=0.0), texts=False
            )
            before = {hit.id: rank for rank, hit in enumerate(without, 1)}
            ranks = {hit.id: (now, before.get(hit.id)) for now, hit in enumerate(hits, question.offset + 1)}
            fixed = len((prompt or searcher.prompt).demonstrations) if ways.demos == "fixed" else 0
            taught = TaughtExplanation(ways.demos, ways.boost, fixed, [_pair(use) for use in used], ranks)
        is_plain = mode == "hybrid" and not searcher.has_words(query)
        answers.append(
            Answer(query, "dense" if is_plain else mode, hits, taught, ONLY_STOP_WORDS if is_plain else None)
        )
    return answers, searcher.facets(question.facets, filter=question.filter)


def hits_as_json(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Hits as `{"id", "score", "title", "text", "payload"}`, with an "explanation" where asked for, best first."""
    return [_without_none(asdict(hit), "explanation") for hit in hits]


def _pair(use: "Use") -> UsedPair:
    pair = use.neighbour.pair
    return UsedPair(
        pair.query, pair.document, label(pair), pair.passage, use.neighbour.similarity, use.shown, use.weight
    )


def _explanation(said: dict[str, Any] | None) -> Explanation | None:
    if said is None:
        return None
    dense, lexical = (Standing(**said[ranking]) if said[ranking] else None for ranking in ("dense", "lexical"))
    return Explanation(dense, lexical, said["words"])


def _without_none(said: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name not in names or value is not None}
