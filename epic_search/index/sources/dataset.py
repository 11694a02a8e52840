"""A data set through Hugging Face `datasets`: from the hub, streamed, or from a local folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epic_search.errors import UserError
from epic_search.index.sources.arrow import ROWS_AT_ONCE, table_rows
from epic_search.index.sources.protocol import Columns, Row

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

PREFIX = "hf:"
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder
USUAL_SPLITS = ("corpus", "train")


class DatasetSource:
    """One split of a data set, named NAME[:CONFIG][@SPLIT]; NAME is a hub id or a folder.

    Without a split: the only one, else `corpus`, else `train`. Raises UserError, when rows are asked for, for a data
    set that does not exist, cannot be reached or has no such configuration or split.
    """

    columns: Columns | None = None
    naming = "its columns are"
    remark = ""
    bytes_total = 0
    bytes_read = 0

    def __init__(self, spec: str, *, name: str) -> None:
        self.name = name
        rest, _, split = spec.rpartition("@") if "@" in spec else (spec, "", "")
        self.dataset, _, config = rest.partition(":")
        self._config, self._split = config or None, split or None
        if not self.dataset:
            raise UserError(f"{name!r} names no data set; give it as hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG@SPLIT")

    def close(self) -> None:
        """Nothing stays open."""

    def rows(self) -> Iterator[Row]:
        """A row for each row of the split."""
        number = 0
        with _told(self.dataset, lambda: f"could not be read on after row {number}"):
            for table in self._tables():
                for values in table_rows(table):
                    number += 1
                    yield Row(f"row {number}", values)

    def _tables(self) -> Iterator[Any]:
        with _told(self.dataset, lambda: "could not be loaded"):
            split = self._chosen(self._load())
        yield from split.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)

    def _load(self) -> "dict[str, IterableDataset | Dataset]":
        from datasets import Dataset, disable_progress_bars, load_dataset, load_from_disk

        disable_progress_bars()
        folder = Path(self.dataset).expanduser()
        if any((folder / name).is_file() for name in SAVED):
            saved = load_from_disk(str(folder))
            return {"train": saved} if isinstance(saved, Dataset) else saved
        if folder.is_dir():
            return load_dataset(str(folder), self._config, streaming=True)
        self._require_on_hub()
        return load_dataset(self.dataset, self._config, streaming=True)

    def _require_on_hub(self) -> None:
        """Ask the hub once: `datasets` itself would try five times before it says that there is no network."""
        from huggingface_hub import HfApi

        HfApi().dataset_info(self.dataset, timeout=20)

    def _chosen(self, splits: "dict[str, IterableDataset | Dataset]") -> "IterableDataset | Dataset":
        usual = [name for name in USUAL_SPLITS if name in splits] if len(splits) > 1 else list(splits)
        chosen = self._split or next(iter(usual), None)
        if chosen not in splits:
            what = f"no split {chosen!r}" if chosen else "several splits"
            raise UserError(
                f"the data set {self.dataset} has {what}; it has {', '.join(splits)}: "
                f"choose with hf:{self.dataset}{f':{self._config}' if self._config else ''}@SPLIT"
            )
        return splits[chosen]


@contextmanager
def _told(dataset: str, what: Callable[[], str]) -> Iterator[None]:
    """Errors of the libraries as one sentence."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub import errors

    # Of httpx or, with huggingface_hub 2, of httpx2: what it lets through when there is no network.
    network_error = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.HFValidationError, DatasetNotFoundError) as error:
        raise UserError(
            f"there is no data set '{dataset}' on the Hugging Face hub, or it is private, and there is no such folder; "
            "check its name (ORG/NAME), or run hf auth login"
        ) from error
    except (DatasetsError, network_error, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
        raise UserError(f"the data set '{dataset}' {what()}: {reason}; check its name and the network") from error
