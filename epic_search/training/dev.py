"""The table `[dev]` of a recipe: what an encoder is measured on while it trains; `dev_meter.py` does it."""

from typing import Any

from pydantic import Field, model_validator

from epic_search.encoder.config import StrictModel


class DevTask(StrictModel):
    """A folder of evaluation data (see README.md, Measure); its name by itself may stand for this table."""

    folder: str = Field(description="The folder; it may hold ${NAME}, as `data.pairs.files` does.")
    split: str = Field(
        "dev",
        min_length=1,
        description="The rows to measure on: dev.jsonl or qrels/dev.tsv. Of train, `dev.limit` rows that nothing else "
        "learns from. Choosing by test would make it a part of the training.",
    )
    instruction: str | None = Field(
        None, description='What its queries ask for, "" for nothing; by default what `epic-search eval` takes.'
    )

    @model_validator(mode="before")
    @classmethod
    def _folder_alone(cls, value: Any) -> Any:
        return {"folder": value} if isinstance(value, str) else value


class Dev(StrictModel):
    """What the encoder is measured on every few steps, the first time before the run and the last time at its end."""

    every: int = Field(ge=1, description="Steps from one measurement to the next.")
    heldout: bool = Field(
        True,
        description="Whether the held-out pairs (`data.heldout`) are measured, too: nDCG@10 without demonstrations.",
    )
    tasks: list[DevTask] = []
    limit: int = Field(
        300,
        ge=10,
        description="Rows of a task (queries in retrieval and reranking) that are measured, always the same. Our "
        "choice: seconds on a GPU, and differences of a few points show.",
    )
    keep: int = Field(
        2000,
        ge=1,
        description="Rows of a training split that are kept, and documents of a corpus: what the queries are judged "
        "on, and others drawn at random. Our choice, for time; over a corpus that was cut scores are higher, and only "
        "to be compared with each other.",
    )
    demonstrations: int = Field(
        0,
        ge=0,
        description="Demonstrations that a task is measured with besides without, from its training split; where there "
        "is none, only without. Our choice: none, since not every folder has that split.",
    )
    shuffled: bool = Field(
        True,
        description="Whether demonstrations are shown a third time with passages that are wrong for their queries. "
        "Only what true pairs gain over these was read in them: the measure of whether EPIC works.",
    )
