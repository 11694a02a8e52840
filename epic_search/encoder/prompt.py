"""Prompts as values: a task, demonstrations, and the segments of token ids and slots they become.

Layout of a query whose demonstrations are soft, one slot for each text (EPIC, arXiv 2605.01372):

    BOS Instruct: TASK\\n (Query: [v_q] \\nResponse: [v_p] \\n) x k  Query: [context] TEXT \\nResponse: EOS
    BOS Instruct: TASK\\n ([v_q] [v_p] \\n) x k  Query: [context] TEXT \\nResponse: EOS    with markers "lines"

and whose demonstrations are texts, in the same places (bge-en-icl, arXiv 2409.15700, where each repeats the
instruction):

    BOS Instruct: TASK\\n (Query: QUERY \\nResponse: PASSAGE \\n) x k  Query: [context] TEXT \\nResponse: EOS

A passage never carries a prompt, so that one index serves every task:

    BOS [context] TEXT EOS

BOS always comes first: causal models park attention on the first position, and its state grows so large there that
a Contextual token in its place would be drowned.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from epic_search.errors import UserError

# Negative ids stand for input positions that are filled with vectors instead of token embeddings.
SOFT_SLOT = -1
CONTEXTUAL_SLOT = -2

INSTRUCTION = "Instruct: {task}\n"
QUERY = "Query:"
RESPONSE = "\nResponse:"
END_OF_DEMONSTRATION = "\n"
TEMPLATE = (INSTRUCTION, QUERY, RESPONSE, END_OF_DEMONSTRATION)

DemonstrationKind = Literal["soft", "text"]
"""What a demonstration's two texts are in the input: a soft token each, or their own tokens."""
KINDS: tuple[DemonstrationKind, ...] = get_args(DemonstrationKind)

Markers = Literal["words", "lines"]
"""What stands around the two soft tokens of a demonstration: the words that stand around texts, or a line's end."""

IdPair = tuple[Sequence[int], Sequence[int]]
"""What stands for a demonstration's query and for its passage in the input."""


@dataclass(frozen=True)
class Demonstration:
    """One example pair: for this query, that passage is right.

    `names_class`: the passage is the name of the query's class ("anger"), and not a text that answers it. Names say
    what a classification or a clustering is about. Their vectors are not put before the query, but change its own (see
    `emphasis.py`), so any number of classes costs no tokens. Of kind "text" they stand in the prompt as others do. A
    class that no text is shown of is named beside an empty `query`, and stands in no prompt.
    """

    query: str
    passage: str
    names_class: bool = False

    @property
    def alone(self) -> bool:
        """Whether it names a class that no text is shown of."""
        return self.names_class and not self.query.strip()


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a query is encoded with: the task's instruction and its demonstrations.

    `vectors_SE`: float32 (2k, dim), unit length, of query 1, passage 1, query 2, ...; zeros for an empty query;
    (0, dim) for k = 0 and for demonstrations of kind "text", whose texts are all there is to them.
    `encoder`: the fingerprint of the encoder that made the prompt; its vectors mean nothing to any other.
    """

    task: str | None
    demonstrations: tuple[Demonstration, ...]
    vectors_SE: np.ndarray
    encoder: str
    kind: DemonstrationKind = "soft"

    def __post_init__(self) -> None:
        vectors = 2 * len(self.demonstrations) if self.kind == "soft" else 0
        assert len(self.vectors_SE) == vectors, (self.vectors_SE.shape, vectors)

    @property
    def slots_SE(self) -> np.ndarray:
        """The vectors that stand in the prompt, (S, dim): of the demonstrations that do not name a class."""
        if self.kind == "text":
            return self.vectors_SE
        stands_K = np.array([not shown.names_class for shown in self.demonstrations], dtype=bool)
        return self.vectors_SE[stands_K.repeat(2)]

    def save(self, path: Path) -> None:
        """Write the prompt to one safetensors file: the vectors as a tensor, the texts as metadata."""
        from safetensors.numpy import save_file

        metadata = {
            "task": json.dumps(self.task),
            "demonstrations": json.dumps([[d.query, d.passage, *[True] * d.names_class] for d in self.demonstrations]),
            "encoder": self.encoder,
            "kind": self.kind,
        }
        save_file({"vectors": self.vectors_SE}, path, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> "Prompt":
        """Read a prompt that `save` wrote; raises UserError when the file is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                task = json.loads(metadata["task"])
                pairs = json.loads(metadata["demonstrations"])
                demonstrations = tuple(Demonstration(*pair) for pair in pairs)
                kind = metadata.get("kind", "soft")  # files from before there were two kinds
                if kind not in KINDS:
                    raise ValueError(f"its demonstrations are of an unknown kind '{kind}'")
                return cls(task, demonstrations, file.get_tensor("vectors"), metadata["encoder"], kind)
        except FileNotFoundError as error:
            raise UserError(f"the prompt file {path} is missing") from error
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not a prompt that epic-search saved: {error}") from error


@dataclass(frozen=True, slots=True)
class Row:
    """A complete input row: token ids, negative at slots; the text's own stand at `start` to `stop`."""

    ids: list[int]
    start: int
    stop: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Layout:
    """Token ids around a text, negative at slots."""

    head: tuple[int, ...]
    tail: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)

    def row(self, text_ids: Sequence[int]) -> Row:
        """The complete input row of one text."""
        start = len(self.head)
        return Row([*self.head, *text_ids, *self.tail], start, start + len(text_ids))


class Template:
    """Turns prompts into layouts, for one tokenizer and one place of the Contextual token."""

    def __init__(
        self,
        tokenize: Callable[[str], list[int]],
        *,
        bos_id: int,
        eos_id: int,
        contextual_position: str | None,
        markers: Markers,
    ) -> None:
        self._tokenize = tokenize
        self._bos_id = bos_id
        self._eos_id = eos_id
        self._early = [CONTEXTUAL_SLOT] if contextual_position == "before_prefix" else []
        self._late = [CONTEXTUAL_SLOT] if contextual_position == "after_prefix" else []
        slot = [SOFT_SLOT]
        self._query, self._response, self._end = tokenize(QUERY), tokenize(RESPONSE), tokenize(END_OF_DEMONSTRATION)
        self._slots = [*slot, *slot, *self._end] if markers == "lines" else self._in_words(slot, slot)
        self.passage = Layout((bos_id, *self._early, *self._late), (eos_id,))

    def query(self, *, task: str | None, demonstrations: int | Sequence[IdPair]) -> Layout:
        """The layout of a query with an instruction (or none) and demonstrations.

        `demonstrations`: the token ids of their texts, or how many there are, for soft slots.
        """
        if isinstance(demonstrations, int):
            shown = self._slots * demonstrations
        else:
            shown = [id for pair in demonstrations for id in self._in_words(*pair)]
        instruction = self._tokenize(INSTRUCTION.format(task=task)) if task else []
        head = [
            self._bos_id,
            *self._early,
            *instruction,
            *shown,
            *self._query,
            *self._late,
        ]
        return Layout(tuple(head), (*self._response, self._eos_id))

    def _in_words(self, query_ids: Sequence[int], passage_ids: Sequence[int]) -> list[int]:
        """A demonstration between the words that say which is its query and which its passage."""
        return [*self._query, *query_ids, *self._response, *passage_ids, *self._end]
