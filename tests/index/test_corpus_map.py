"""The map of a corpus: its plane is that of a plain singular value decomposition, and it is bounded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epic_search.encoder import Encoder
from epic_search.index import Searcher, corpus_map, index_corpus
from epic_search.index.corpus_map import plane_of


def corpus(folder: Path, count: int) -> Path:
    path = folder / "notes.jsonl"
    path.write_text(
        "".join(
            json.dumps({"_id": f"d{n}", "title": f"Note {n}", "text": f"{n} otters " * (n + 1)}) + "\n"
            for n in range(count)
        )
    )
    return path


@pytest.mark.parametrize("shape", [(400, 24), (30, 200), (3, 5)])
def test_the_plane_is_that_of_a_plain_decomposition(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    vectors_PE = (random.standard_normal(shape) * np.geomspace(4, 0.5, shape[1])).astype(np.float32)
    plane = plane_of(vectors_PE)
    _, _, expected_PE = np.linalg.svd(vectors_PE - vectors_PE.mean(axis=0), full_matrices=False)
    alike_2 = np.abs(np.sum(plane.axes_E2.T * expected_PE[:2], axis=1))
    assert alike_2 == pytest.approx(1.0, abs=0.02)
    places_P2 = plane.places(vectors_PE)
    assert np.abs(places_P2).max() <= 1.0
    assert np.ptp(places_P2, axis=0).min() > 1.7  # it fills the sheet
    assert np.array_equal(plane.places(vectors_PE), plane_of(vectors_PE.copy()).places(vectors_PE))


@pytest.mark.parametrize("vectors_PE", [np.zeros((0, 4)), np.ones((1, 4)), np.ones((9, 4)) / 2])
def test_nothing_to_tell_apart_is_a_map_all_the_same(vectors_PE: np.ndarray) -> None:
    places_P2 = plane_of(vectors_PE.astype(np.float32)).places(vectors_PE.astype(np.float32))
    assert places_P2.shape == (len(vectors_PE), 2) and np.isfinite(places_P2).all()
    assert np.abs(places_P2).max(initial=0.0) <= 1.0


def test_the_map_has_each_document_once_and_asked_ones_lie_where_the_sample_has_them(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    index_corpus(corpus(tmp_path, 12), name="notes", encoder=tiny_encoder, home=tmp_path / "home")
    with Searcher.open("notes", home=tmp_path / "home", encoder=tiny_encoder) as searcher:
        assert searcher.manifest.passages > 12
        sample = {spot.id: spot for spot in searcher.map.sample()}
        assert {(spot.id, spot.title) for spot in sample.values()} == {(f"d{n}", f"Note {n}") for n in range(12)}
        assert searcher.map.spots(["d3", "nope", "d11"]) == [sample["d3"], sample["d11"]]


def test_a_huge_index_is_read_in_part(tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index_corpus(corpus(tmp_path, 40), name="notes", encoder=tiny_encoder, home=tmp_path / "home")
    monkeypatch.setattr(corpus_map, "SAMPLE", 16)
    monkeypatch.setattr(corpus_map, "PAGE", 8)
    monkeypatch.setattr(corpus_map, "CHARACTERS", 40)
    read = 0
    with Searcher.open("notes", home=tmp_path / "home", encoder=tiny_encoder) as searcher:
        store = searcher.map._contents.store
        scroll = store.scroll

        def counted(**options: Any) -> Any:
            nonlocal read
            page = scroll(**options)
            read += len(page.points)
            return page

        monkeypatch.setattr(store, "scroll", counted)
        sample = searcher.map.sample()
        assert searcher.map.sample() is sample
        assert read <= 16
        assert 0 < sum(len(spot.id) + len(spot.title) for spot in sample) <= 40
        outside = next(f"d{n}" for n in range(40) if f"d{n}" not in {spot.id for spot in sample})
        [spot] = searcher.map.spots([outside])
        assert spot.id == outside and -1 <= spot.x <= 1 and -1 <= spot.y <= 1
