"""The items of an evaluation make up its main score, for every kind of task."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mteb")

from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from epic_search.evaluation.kinds import KINDS, Kind
from epic_search.evaluation.results import Items, read_results
from epic_search.evaluation.tasks import folder_task
from tests.evaluation.conftest import Data, Evaluate, row

TESTED = 16


def score_of(items: Items) -> float:
    """The main score again, from items alone."""
    if items.form in ("mean", "runs"):
        return float(np.mean(items.values))
    assert items.gold is not None
    if items.form == "spearman":
        return float(spearmanr(items.gold, items.values).statistic)
    return float(average_precision_score(items.gold, items.values))


FORMS = {
    "retrieval": ("ndcg_at_10", "mean", TESTED),
    "reranking": ("map_at_1000", "mean", TESTED),
    "sts": ("cosine_spearman", "spearman", TESTED),
    "pair_classification": ("max_ap", "average_precision", TESTED),
    "classification": ("accuracy", "mean", TESTED),
    "clustering": ("v_measure", "runs", 10),
}


@pytest.mark.parametrize("kind", KINDS)
def test_items_make_up_the_score(kind: Kind, data: Data, evaluate: Evaluate, out: Path) -> None:
    assert evaluate(folder_task(data(kind), kind=kind)).states == ["done"]
    [result] = read_results(out)
    items = result.items
    assert items is not None and 0 < abs(result.score) < 1  # of an encoder that nobody trained
    assert (items.metric, items.form, len(items.ids)) == FORMS[kind]
    assert score_of(items) == pytest.approx(result.score, abs=1e-5)  # mteb rounds some scores to five digits


@pytest.mark.parametrize("kind", ["retrieval", "sts"])
def test_items_are_known_by_the_queries_and_rows_of_the_data(
    kind: Kind, data: Data, evaluate: Evaluate, out: Path
) -> None:
    evaluate(folder_task(data(kind)))
    [result] = read_results(out)
    assert result.items is not None
    if kind == "retrieval":
        assert set(result.items.ids) == {f"q{i}" for i in range(TESTED)}
    else:
        assert result.items.ids == tuple(map(str, range(TESTED)))
        assert result.items.gold is not None
        assert list(result.items.gold) == [row("sts", i)["score"] for i in range(TESTED)]


def test_parts_that_mteb_averages_are_told_apart(evaluate: Evaluate, out: Path) -> None:
    """Two splits with queries of the same ids, and two languages with sentences of the same numbers."""
    from mteb.mocks.mock_tasks import MockMultilingualSTSTask, MockRetrievalTask

    from epic_search.evaluation.tasks import EvalTask

    evaluate(
        EvalTask("MockRetrievalTask", "retrieval", MockRetrievalTask, None),
        EvalTask("MockMultilingualSTSTask", "sts", MockMultilingualSTSTask, None),
    )
    items = {result.kind: result.items for result in read_results(out)}
    assert items["retrieval"] is not None and items["sts"] is not None
    assert set(items["retrieval"].ids) == {"q1", "q2", "val/default/q1", "val/default/q2"}
    assert set(items["sts"].ids) == {f"test/{language}/{i}" for language in ("eng", "fra") for i in (0, 1)}
