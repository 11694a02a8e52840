"""Intervals and paired differences, against scikit-learn and scipy; means as MTEB forms them."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

sys.path.insert(0, str(Path(__file__).parent))

from results_helpers import write_result

from epic_search.errors import UserError
from epic_search.evaluation.compare import compare, pair_rows
from epic_search.evaluation.results import Items, Result, choose, read_results
from epic_search.evaluation.statistics import RESAMPLES, Estimate, _counts, _scores, estimate, mean
from epic_search.evaluation.table import Entry, Table, summary_rows, task_rows


def one(out: Path, **options: object) -> Result:
    write_result(out, **options)  # type: ignore[arg-type]
    (result,) = read_results(out)
    return result


def items(form: str, values: Sequence[float], gold: Sequence[float] | None = None) -> Items:
    ids = tuple(map(str, range(len(values))))
    return Items(
        "metric", form, ids, np.array(values, dtype=float), None if gold is None else np.array(gold, dtype=float)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("form", ["mean", "spearman", "average_precision"])
def test_a_resample_scores_as_the_drawn_items_do(form: str, ties: bool) -> None:
    """The fast path against the plain one: draw the items, then ask the library."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=60).round(0 if ties else 6)
    gold = (rng.random(60) < 0.4).astype(float) if form == "average_precision" else rng.integers(0, 6, 60).astype(float)
    counts_RN = _counts("any task", 60)[:50]
    assert (counts_RN.sum(axis=1) == 60).all()
    scores_R = _scores(items(form, values, gold), counts_RN.astype(float))
    for counts_N, score in zip(counts_RN, scores_R, strict=True):
        drawn, right = np.repeat(values, counts_N), np.repeat(gold, counts_N)
        match form:
            case "mean":
                expected = drawn.mean()
            case "spearman":
                expected = stats.spearmanr(drawn, right)[0]
            case _:
                expected = average_precision_score(right, drawn)
        assert score == pytest.approx(expected, abs=1e-12)


def test_the_interval_agrees_with_scipy(tmp_path: Path) -> None:
    values = np.random.default_rng(0).beta(1, 2, 300)
    found = estimate([one(tmp_path, values=values.tolist())]).interval
    reference = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert found == pytest.approx((reference.low, reference.high), abs=0.004)


def test_the_interval_covers_the_truth_about_as_often_as_it_says(tmp_path: Path) -> None:
    result = one(tmp_path, values=[0.0] * 100)
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        values = (rng.random(100) < 0.3).astype(float)
        drawn = Result(**{**vars(result), "score": values.mean(), "items": items("mean", values.tolist())})
        within = estimate([drawn]).interval
        assert within is not None
        covered += within[0] <= 0.3 <= within[1]
    assert 0.89 <= covered / 200 <= 0.99


def test_the_order_of_items_does_not_matter(tmp_path: Path) -> None:
    values, ids = [0.1, 0.9, 0.4, 0.7, 0.2], ["e", "b", "d", "a", "c"]
    forward = one(tmp_path / "a", values=values, ids=ids)
    backward = one(tmp_path / "b", values=values[::-1], ids=ids[::-1])
    change = estimate([forward]) - estimate([backward])
    assert change.interval == (0.0, 0.0)
    assert not change.excludes_zero


def test_a_difference_is_paired(tmp_path: Path) -> None:
    """Every query gains a little: clear as a paired difference, though the two intervals overlap widely."""
    rng = np.random.default_rng(1)
    before = rng.random(50) * 0.9
    a = one(tmp_path / "a", values=before.tolist())
    b = one(tmp_path / "b", values=(before + rng.normal(0.02, 0.01, 50)).tolist())
    change = estimate([b]) - estimate([a])
    assert change.interval is not None
    low, high = change.interval
    assert 0.01 < low < change.score < high < 0.03
    assert change.excludes_zero
    intervals = estimate([a]).interval, estimate([b]).interval
    assert intervals[0] and intervals[1] and intervals[0][1] > intervals[1][0]


def test_seeds_are_averaged_first(tmp_path: Path) -> None:
    for seed, values in enumerate(([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0])):
        write_result(tmp_path, values=values, experiment={"demos": 1, "seed": seed})
    both = estimate(read_results(tmp_path))
    assert both.score == 0.5
    assert both.interval == (0.5, 0.5)


def test_tasks_are_drawn_independently() -> None:
    """Of independent tasks the mean has the interval of the sum of their variances."""
    rng = np.random.default_rng(2)
    values = [rng.random(200) for _ in range(9)]
    parts = [
        Estimate(each.mean(), _scores(items("mean", each.tolist()), _counts(f"task {i}", 200).astype(float)))
        for i, each in enumerate(values)
    ]
    widths = [part.interval[1] - part.interval[0] for part in parts if part.interval]
    within = mean(parts).interval
    assert within is not None
    assert within[1] - within[0] == pytest.approx(np.mean(widths) / 3, rel=0.15)


def test_no_interval_without_items_that_give_the_score(tmp_path: Path) -> None:
    assert estimate([one(tmp_path / "a", with_items=False)]).interval is None
    assert estimate([one(tmp_path / "b", values=[0.5])]).interval is None
    assert estimate([one(tmp_path / "c", values=[0.2, 0.4], score=0.6)]).interval is None
    near = estimate([one(tmp_path / "d", values=[0.2, 0.2, 0.2], score=0.2005)])
    assert near.interval == pytest.approx((0.2005, 0.2005))


def test_a_mean_that_contains_clustering_has_no_interval(tmp_path: Path) -> None:
    certain = one(tmp_path / "runs", kind="clustering", values=[0.2, 0.9])
    assert estimate([certain]).interval is None
    wide = estimate([one(tmp_path / "mean", values=[0.0, 1.0, 0.0, 1.0])])
    assert mean([wide, wide]).interval is not None
    assert mean([wide, estimate([certain])]).interval is None


def test_resamples_without_a_positive_are_left_out(tmp_path: Path) -> None:
    result = one(tmp_path, kind="pair_classification", values=[0.9, 0.1, 0.2, 0.3], gold=[1, 0, 0, 0], score=1.0)
    found = estimate([result])
    assert found.resamples_R is not None
    assert 0 < np.isnan(found.resamples_R).sum() < RESAMPLES
    assert found.interval == (1.0, 1.0)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Two models on three tasks of two kinds; the second lacks a kind, as BM25 does."""
    for task, kind, score in (("A", "retrieval", 0.4), ("B", "retrieval", 0.6), ("C", "classification", 0.8)):
        values = [score - 0.1, score, score + 0.1]
        write_result(tmp_path, task=task, kind=kind, values=values)
        for seed, shift in ((0, 0.0), (1, 0.02)):
            moved = [value + shift for value in values]
            write_result(tmp_path, task=task, kind=kind, values=moved, experiment={"demos": 4, "seed": seed})
        if kind == "retrieval":
            write_result(tmp_path, task=task, kind=kind, model="words", values=values)
    return Table(read_results(tmp_path))


def test_means_are_mtebs(table: Table) -> None:
    plain = Entry("small", 0)
    means = {name: table.column(plain, name) for name in table.columns}
    assert {name: round(value.score, 6) for name, value in means.items() if value} == {
        "Retrieval": 0.5,
        "Classification": 0.8,
        "Mean (Task)": 0.6,
        "Mean (TaskType)": 0.65,
    }


def test_rows_for_the_terminal(table: Table) -> None:
    columns, rows = summary_rows(table)
    assert columns == ["model", "Retrieval", "Classification", "Mean (Task)", "Mean (TaskType)"]
    assert [row[0] for row in rows] == ["small", "small@4", "words"]
    assert rows[0][1].startswith("50.00 ±")
    assert rows[1][1].startswith("51.00 ±")
    assert rows[2][2:] == ["-", "-", "-"]
    columns, rows = task_rows(table)
    assert columns == ["task", "metric", "items", "small", "small@4", "words"]
    assert rows[2][:3] == ["C", "accuracy", "3"]
    assert rows[2][-1] == "-"
    assert all(len(row) == len(columns) for row in rows)


def test_one_task_has_no_overall_mean(tmp_path: Path) -> None:
    write_result(tmp_path)
    assert Table(read_results(tmp_path)).columns == ["Retrieval"]


@pytest.mark.parametrize("options", [{"dataset_revision": "data2"}, {"ids": ["0", "1", "other"]}])
def test_a_table_over_different_data_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    write_result(tmp_path)
    write_result(tmp_path, model="other", **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="different versions of Task"):
        Table(read_results(tmp_path))


def test_compare_pairs_common_labels(tmp_path: Path) -> None:
    for out, gain in ((tmp_path / "a", 0.0), (tmp_path / "b", 0.1)):
        for task in ("One", "Two"):
            write_result(out, task=task, values=[0.1 + gain, 0.5 + gain])
        write_result(out, task=f"Only {out.name}")
        write_result(out, model=f"only-{out.name}")
    comparison = compare(choose(str(tmp_path / "a")), choose(str(tmp_path / "b")))
    assert (comparison.only_a, comparison.only_b) == (["only-a"], ["only-b"])
    (pair,) = comparison.pairs
    assert pair.left_out == ["Only a", "Only b"]
    assert [line.name for line in pair.tasks] == ["One", "Two"]
    assert all(line.difference.score == pytest.approx(0.1) and line.difference.excludes_zero for line in pair.tasks)
    columns, rows = pair_rows(pair)
    assert columns == ["task", "small (first)", "small (second)", "difference", "95% interval", ""]
    assert rows[0] == ["One", "30.00", "40.00", "+10.00", "+10.00 to +10.00", "*"]
    assert rows[-1][:4] == ["mean of Retrieval", "30.00", "40.00", "+10.00"]
    assert all(len(row) == len(columns) for row in rows)


def test_compare_two_entries_of_different_names(tmp_path: Path) -> None:
    write_result(tmp_path, values=[0.2, 0.4])
    write_result(tmp_path, values=[0.4, 0.2], experiment={"demos": 4, "seed": 0})
    (pair,) = compare(choose(f"{tmp_path}:small"), choose(f"{tmp_path}:small@4")).pairs
    assert (pair.a, pair.b) == ("small", "small@4")
    assert not pair.tasks[0].difference.excludes_zero


def test_compare_says_what_it_cannot_pair(tmp_path: Path) -> None:
    for model in ("one", "two"):
        write_result(tmp_path / "a", model=model)
    write_result(tmp_path / "b", model="three")
    write_result(tmp_path / "c", model="one", task="Another")
    write_result(tmp_path / "d", model="one", ids=["x", "y", "z"])
    a, b, c, d = (choose(str(tmp_path / name)) for name in "abcd")
    with pytest.raises(UserError, match=r"first has one, two, the second three; choose .*PATH:LABEL"):
        compare(a, b)
    with pytest.raises(UserError, match="both sides are the same results"):
        compare(a, a)
    with pytest.raises(UserError, match="no task in common: Task against Another"):
        compare(a, c)
    with pytest.raises(UserError, match="different versions of Task"):
        compare(a, d)
