"""How far feedback reaches: chosen by the pairs themselves, far where many queries have one answer."""

import numpy as np
import pytest

from epic_search.index.feedback import NEIGHBOURS, REACH, SLOPE, chosen_reach, expanded, moved, weights
from epic_search.index.store.protocol import Sparse


def unit(vectors_NE: np.ndarray) -> np.ndarray:
    return (vectors_NE / np.linalg.norm(vectors_NE, axis=-1, keepdims=True)).astype(np.float32)


def pairs(topics: int, each: int, *, shared: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Queries in loose groups; the queries of a group have one answer, or each its own, in no relation to its words."""
    rng = np.random.default_rng(0)
    centres_UE = unit(rng.standard_normal((topics, 64)))
    of_K = np.repeat(np.arange(topics), each)
    queries_KE = unit(centres_UE[of_K] + 0.08 * rng.standard_normal((topics * each, 64)))
    answers = of_K if shared else np.arange(topics * each)
    own_KE = 0.5 * queries_KE + unit(rng.standard_normal((topics * each, 64)))
    shared_UE = unit(rng.standard_normal((topics, 64)))
    passages_KE = unit(shared_UE[of_K] if shared else own_KE)
    return queries_KE, passages_KE, [str(answer) for answer in answers]


def test_far_where_neighbours_share_their_answer_and_not_where_each_has_its_own() -> None:
    assert chosen_reach(*pairs(8, 6, shared=True)) <= REACH
    assert chosen_reach(*pairs(8, 6, shared=False)) > REACH


def test_one_pair_that_falls_to_second_place_does_not_take_the_reach_from_all_others() -> None:
    """Pairs that all have answers of their own cannot speak for a far reach; one of them is not enough against it."""
    passages_KE = np.eye(12, dtype=np.float32)
    queries_KE = passages_KE.copy()
    queries_KE[0] = unit(queries_KE[0] + 0.9 * queries_KE[1])  # its cosine to the second query is 0.67
    answers = [str(number) for number in range(12)]
    similarities_K = np.sort(np.delete(queries_KE @ queries_KE[0], 0))[::-1]
    fallen_E = moved(queries_KE[0], weights(similarities_K, reach=REACH), passages_KE[1:], boost=1.0)
    assert (passages_KE @ fallen_E).argsort()[::-1][:2].tolist() == [1, 0]
    assert chosen_reach(queries_KE, passages_KE, answers) == REACH


@pytest.mark.parametrize("count", [0, 1])
def test_without_evidence_the_default(count: int) -> None:
    queries_KE, passages_KE, answers = pairs(1, 1, shared=True)
    assert chosen_reach(queries_KE[:count], passages_KE[:count], answers[:count]) == REACH


def test_weights() -> None:
    similarities_K = np.linspace(0.9, 0.5, NEIGHBOURS + 3)
    found_K = weights(similarities_K, reach=0.9)
    assert found_K[0] == pytest.approx(
        0.5 / max(1, (1 / (1 + np.exp((0.9 - similarities_K[:NEIGHBOURS]) / SLOPE))).sum())
    )
    assert np.all(np.diff(found_K) <= 0) and not found_K[NEIGHBOURS:].any()
    assert weights(np.full(20, 0.99), reach=0.5).sum() == pytest.approx(1.0)
    assert weights(np.array([1.0, 0.9975, 0.99]), reach=0.5).tolist() == [0.5, 0.5, 0.0]
    assert weights(np.array([]), reach=REACH).shape == (0,)


def test_the_move() -> None:
    queries_KE, passages_KE, _ = pairs(2, 1, shared=True)
    found_E = moved(queries_KE[0], np.array([0.5, 0.25]), passages_KE, boost=2.0)
    expected_E = queries_KE[0] + passages_KE[0] + 0.5 * passages_KE[1]
    np.testing.assert_allclose(found_E, expected_E / np.linalg.norm(expected_E), atol=1e-6)
    assert found_E.dtype == np.float32


def sparse(weights: dict[int, float]) -> Sparse:
    return Sparse(np.array(list(weights), np.uint32), np.array(list(weights.values()), np.float32))


def test_terms_of_the_passages_weigh_their_share_of_the_query() -> None:
    query = sparse({3: 1.0, 8: 1.0})
    found = expanded(query, [sparse({1: 1.0, 3: 1.0, 5: 1.0, 9: 1.0}), sparse({})], [0.5, 0.3])
    assert dict(zip(found.terms_T.tolist(), found.weights_T.tolist(), strict=True)) == pytest.approx(
        {1: 0.25, 3: 1.25, 5: 0.25, 8: 1.0, 9: 0.25}
    )
    assert expanded(query, [], []).weights_T.tolist() == [1.0, 1.0]
