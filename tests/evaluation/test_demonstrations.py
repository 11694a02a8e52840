"""Demonstrations come from training data alone, are drawn fairly, and have controls that show nothing true."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb")

from epic_search.encoder import Encoder
from epic_search.encoder.prompt import DemonstrationKind
from epic_search.errors import UserError
from epic_search.evaluation import demonstrations
from epic_search.evaluation.demonstrations import (
    WRONG_TASK,
    ClassDemonstrations,
    Pair,
    Pool,
    comparable,
    file_pool,
    make_prompt,
    task_pool,
)
from epic_search.evaluation.kinds import KINDS, Control
from epic_search.evaluation.tasks import PairFile, folder_task
from tests.evaluation.conftest import LABELS, WORDS, Data, row, write_rows

INSTRUCTION = "Find the like"


def pool_of(folder: Path, kind: Any, *, classes: ClassDemonstrations = "examples") -> Pool:
    task = folder_task(folder, kind=kind).make()
    task.load_data()
    return task_pool(task, kind, classes=classes)


def anything(pair: Pair) -> bool:
    return True


def pool(count: int, *, classes: int = 0) -> Pool:
    labels = [f"class {i % classes}" if classes else None for i in range(count)]
    return Pool(tuple(Pair(f"query {i}", f"passage {i}", label) for i, label in enumerate(labels)), "a test")


def shown(
    encoder: Encoder,
    pool: Pool | None,
    *,
    k: int = 3,
    seed: int = 0,
    control: Control | None = None,
    kind: DemonstrationKind | None = None,
) -> Any:
    return make_prompt(encoder, instruction=INSTRUCTION, pool=pool, k=k, seed=seed, control=control, kind=kind)


def texts(prompt: Any) -> list[tuple[str, str]]:
    return [(d.query, d.passage) for d in prompt.demonstrations]


# --- pools


def test_retrieval_shows_queries_with_title_and_text_of_their_documents(data: Data) -> None:
    found = pool_of(data("retrieval", test=8, train=3), "retrieval").pairs
    assert found == tuple(Pair(f"{WORDS[i % 4]} {i}", f"Title {i}\n{WORDS[i % 4]} text {i}") for i in (8, 9, 10))


def test_retrieval_leaves_out_documents_that_were_judged_irrelevant(data: Data) -> None:
    folder = data("retrieval", test=8, train=2)
    (folder / "qrels" / "train.tsv").write_text("q8\td1\t0\nq8\td8\t2\n")
    assert [pair.passage for pair in pool_of(folder, "retrieval").pairs] == [f"Title 8\n{WORDS[0]} text 8"]


def test_reranking_shows_queries_with_what_answers_them(data: Data) -> None:
    found = pool_of(data("reranking", train=3), "reranking").pairs
    rows = [row("reranking", i) for i in (16, 17, 18)]
    assert found == tuple(Pair(row["query"], row["positive"][0]) for row in rows)


@pytest.mark.parametrize("kind", ["sts", "pair_classification"])
def test_only_pairs_that_are_alike_demonstrate_likeness(data: Data, kind: str) -> None:
    found = pool_of(data(kind, train=6), kind).pairs
    rows = [row(kind, i) for i in (17, 19, 21)]
    assert found == tuple(Pair(row["sentence1"], row["sentence2"]) for row in rows)


def test_four_fifths_of_the_highest_score_are_enough(data: Data) -> None:
    folder = data("sts")
    scores = [5.0, 4.0, 3.9, 0.0]
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": score} for i, score in enumerate(scores)]
    write_rows(folder / "train.jsonl", rows)
    assert [pair.query for pair in pool_of(folder, "sts").pairs] == ["a 0", "a 1"]


@pytest.mark.parametrize("kind", ["classification", "clustering"])
def test_a_class_is_shown_by_two_of_its_texts_or_by_its_name(data: Data, kind: str) -> None:
    folder = data(kind, train=16)
    trained = {row(kind, i)["text"]: row(kind, i)["label"] for i in range(16, 32)}
    by_examples = pool_of(folder, kind).pairs
    assert len(by_examples) == 8
    assert all(trained[pair.query] == trained[pair.passage] == pair.label for pair in by_examples)
    assert all(pair.query != pair.passage for pair in by_examples)
    by_names = pool_of(folder, kind, classes="names").pairs
    assert {(pair.query, pair.passage) for pair in by_names} == set(trained.items())
    assert {pair.passage for pair in by_names} == set(LABELS)


@pytest.mark.parametrize("kind", KINDS)
def test_no_pair_shows_a_tested_text(data: Data, kind: Any) -> None:
    folder = data(kind, train=16)
    if kind == "retrieval":
        queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
        for query in queries[16:24]:
            query["text"] = queries[0]["text"].upper() + " \n"
        write_rows(folder / "queries.jsonl", queries)
        with (folder / "qrels" / "train.tsv").open("a") as judged:
            judged.write("q25\td1\t1\n")  # right for a query of the test, too
    else:
        known = row(kind, 1)
        again = {key: value.upper() + " " if isinstance(value, str) else value for key, value in known.items()}
        again |= {"label": known["label"]} if "label" in known else {}
        write_rows(folder / "train.jsonl", [*(row(kind, i) for i in range(16, 32)), again, again])
    task = folder_task(folder, kind=kind).make()
    task.load_data()
    tested = demonstrations.tested_texts(task, kind)
    found = task_pool(task, kind, classes="examples").pairs
    assert comparable(row("sts", 1)["sentence1"]) in tested
    assert found
    assert not {comparable(text) for pair in found for text in (pair.query, pair.passage)} & tested


def test_a_training_split_of_tested_texts_alone_has_nothing_to_show(data: Data) -> None:
    folder = data("sts")
    (folder / "train.jsonl").write_bytes((folder / "test.jsonl").read_bytes())
    with pytest.raises(UserError, match="each of the 8 pairs of the training split of sts shows a text of the test"):
        pool_of(folder, "sts")


@pytest.mark.parametrize(("kind", "labels"), [("sts", ""), ("clustering", ' or {"text": ..., "label": ...}')])
def test_without_a_training_split_the_way_out_is_said(data: Data, kind: str, labels: str) -> None:
    said = f'give pairs with --pairs FILE, as lines {{"query": ..., "passage": ...}}{labels}, or take 0'
    with pytest.raises(UserError, match=f"{kind} has no training split .*{re.escape(said)}"):
        pool_of(data(kind), kind)


def test_a_file_holds_passages_or_positives_of_the_wanted_task_without_tested_texts(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"query": "q1", "passage": "p1"},
        {"query": "q2", "positive": "p2", "task": "other"},
        {"query": "q1", "passage": "p1"},
        {"query": "Q  three", "passage": "p3"},
        {"query": "q4", "passage": "  "},
    ]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    everything = file_pool(PairFile(path), tested=frozenset({"q three"}))
    assert everything.pairs == (Pair("q1", "p1"), Pair("q2", "p2"))
    assert file_pool(PairFile(path, "other")).pairs == (Pair("q2", "p2"),)
    with pytest.raises(UserError, match=r"pairs\.jsonl holds no pair"):
        file_pool(PairFile(path, "absent"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"query": "q", "passage": "p"}\n{"query": "q"}\n', "line 2: a demonstration has the texts query and passage"),
        ('{"query": 1, "passage": "p"}\n', "line 1: a demonstration has the texts query and passage"),
        ("not json\n", "line 1"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        file_pool(PairFile(path))
    assert said in str(error.value) and "pairs.jsonl" in str(error.value)


# --- the draw


def test_classes_take_turns() -> None:
    drawn = pool(40, classes=4).draw(8, seed=0, fits=anything)
    assert sorted(pair.label or "" for pair in drawn) == sorted(f"class {i % 4}" for i in range(8))
    assert {pair.label for pair in drawn[:4]} == {f"class {i}" for i in range(4)}
    rare = Pool((*pool(10, classes=1).pairs, Pair("rare query", "rare passage", "rare")), "a test")
    assert sum(pair.label == "rare" for pair in rare.draw(4, seed=0, fits=anything)) == 1


def test_the_seed_decides() -> None:
    drawn = [pool(40).draw(5, seed=seed, fits=anything) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5


def test_pairs_that_do_not_fit_are_passed_over() -> None:
    drawn = pool(40).draw(4, seed=0, fits=lambda pair: pair.query.endswith("1"))
    assert sorted(pair.query for pair in drawn) == ["query 1", "query 11", "query 21", "query 31"]


def test_too_few_pairs() -> None:
    with pytest.raises(
        UserError,
        match=r"a test holds 40 pairs that can be shown, 4 of them short enough to be read whole; ask for at most 4, "
        r"or give pairs in a file$",
    ):
        pool(40).draw(5, seed=0, fits=lambda pair: pair.query.endswith("1"))


def test_too_few_pairs_in_a_file_of_which_some_are_left_out(pairs_file: Path) -> None:
    given = file_pool(PairFile(pairs_file), tested=frozenset({"ask 1", "answer 2"}))
    said = r"holds 10 pairs that can be shown \(left out, with a text of the test: 2\), "
    with pytest.raises(UserError, match=f"{said}10 of them .*; ask for at most 10, or add other pairs to it$"):
        given.draw(11, seed=0, fits=anything)
    with pytest.raises(UserError, match=f"{said}0 of them short enough to be read whole; add other pairs to it$"):
        given.draw(1, seed=0, fits=lambda pair: False)


def test_a_prompt_shows_only_what_the_encoder_reads_whole(tiny_encoder: Encoder) -> None:
    long = "x" * (tiny_encoder.config.max_length + 1)
    pairs = [Pair(f"q{i}", long) for i in range(20)] + [Pair(long, f"p{i}") for i in range(20)]
    prompt = shown(tiny_encoder, Pool((*pairs, Pair("short", "too"), Pair("brief", "as well")), "a test"), k=2)
    assert sorted(texts(prompt)) == [("brief", "as well"), ("short", "too")]


# --- prompts and controls


def test_no_demonstrations_need_no_pool(tiny_encoder: Encoder) -> None:
    prompt = shown(tiny_encoder, None, k=0)
    assert (prompt.task, prompt.demonstrations, prompt.vectors_SE.shape[0]) == (INSTRUCTION, (), 0)


def test_a_true_prompt_holds_pairs_of_the_pool(tiny_encoder: Encoder) -> None:
    prompt = shown(tiny_encoder, pool(10))
    assert len(prompt.demonstrations) == 3
    assert set(texts(prompt)) <= {(pair.query, pair.passage) for pair in pool(10).pairs}
    assert texts(shown(tiny_encoder, pool(10), seed=1)) != texts(prompt)


def test_shuffled_keeps_the_queries_and_shows_no_true_pair(tiny_encoder: Encoder) -> None:
    true = {(pair.query, pair.passage) for pair in pool(10).pairs}
    for seed in range(5):
        wrong = texts(shown(tiny_encoder, pool(10), seed=seed, control="shuffled"))
        assert len(wrong) == 3 and not set(wrong) & true
        assert [query for query, _ in wrong] == [query for query, _ in texts(shown(tiny_encoder, pool(10), seed=seed))]
        assert {passage for _, passage in wrong} <= {passage for _, passage in true}


def test_shuffled_shows_no_true_pair_where_a_query_has_several_passages(tiny_encoder: Encoder) -> None:
    """A query of retrieval often has several relevant documents: the passage of another pair may be right too."""
    pairs = tuple(Pair(f"query {i % 3}", f"passage {i}") for i in range(12))
    true = {(pair.query, pair.passage) for pair in pairs}
    for seed in range(10):
        wrong = texts(shown(tiny_encoder, Pool(pairs, "a test"), seed=seed, control="shuffled"))
        assert not set(wrong) & true


def test_shuffled_changes_the_class() -> None:
    classes = pool(24, classes=2)
    class_of = {pair.passage: pair.label for pair in classes.pairs}
    wrong = classes.draw_shuffled(8, seed=0, fits=anything)
    assert len(wrong) == 8
    assert all(class_of[pair.passage] != pair.label for pair in wrong)


def test_one_shuffled_demonstration_is_wrong_too() -> None:
    [pair] = pool(2).draw_shuffled(1, seed=0, fits=anything)
    assert pair not in pool(2).pairs


def test_where_every_passage_is_right_none_can_be_shuffled() -> None:
    for right in (pool(10, classes=1), Pool(tuple(Pair("one query", f"passage {i}") for i in range(5)), "a test")):
        with pytest.raises(UserError, match="a test holds no passage that is wrong for '"):
            right.draw_shuffled(3, seed=0, fits=anything)


def test_wrong_task_shows_true_pairs_of_another(tiny_encoder: Encoder) -> None:
    another = {(row["query"], row["passage"]) for row in map(json.loads, WRONG_TASK.read_text().splitlines())}
    found = texts(shown(tiny_encoder, pool(10), control="wrong-task"))
    assert len(found) == 3 and set(found) <= another


def test_a_file_may_name_classes(tiny_encoder: Encoder, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"query": f"a text {i}", "label": LABELS[i % 2]} for i in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = shown(tiny_encoder, file_pool(PairFile(file)), k=4).demonstrations
    assert {one.passage for one in named} == set(LABELS[:2]) and all(one.names_class for one in named)
    file.write_text('{"query": "a text", "passage": "a", "label": "a"}\n')
    assert file_pool(PairFile(file)).pairs == (Pair("a text", "a"),), "a label beside a passage is not read"
    file.write_text(
        '{"text": "a text", "label": "a"}\n{"text": "another", "label": "b", "passage": "c", "query": "q"}\n'
    )
    assert file_pool(PairFile(file)).pairs == (Pair("a text", "a", "a", True), Pair("q", "c"))
    said = "line 1: a demonstration has the texts query and passage, or query and label, or text and label"
    for wrong in ({"query": "a text"}, {"text": None, "label": "a"}, {"passage": "a text", "label": "a"}):
        write_rows(file, [wrong])
        with pytest.raises(UserError, match=said):
            file_pool(PairFile(file))


def test_all_classes_may_be_told(tiny_encoder: Encoder, data: Data, tmp_path: Path) -> None:
    told = pool_of(data("classification", train=16), "classification", classes="all-names")
    assert set(told.classes) == set(LABELS)
    for control in (None, "shuffled"):
        first, *others = shown(tiny_encoder, told, k=1, control=control).demonstrations
        assert first.query and {first.passage, *(one.passage for one in others)} == set(LABELS)
        assert all(one.alone for one in others) and len(others) == len(LABELS) - 1
    for control in ("wrong-task", "random"):
        others = shown(tiny_encoder, told, k=1, control=control).demonstrations
        assert [one.alone for one in others] == [False, *[True] * (len(LABELS) - 1)], "as many as the task has"
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"query": "a text", "label": "a"}\n{"label": "b"}\n{"label": "b"}\n')
    given = file_pool(PairFile(file))
    assert (given.pairs, given.classes) == ((Pair("a text", "a", "a", True),), ("a", "b"))
    file.write_text('{"query": "a text", "label": "a"}\n{"label": "_"}\n')
    with pytest.raises(UserError, match=r"line 2: .*; a class without an example has a label alone"):
        file_pool(PairFile(file))


def test_a_class_has_one_name_whatever_it_is_read_from(data: Data, tmp_path: Path) -> None:
    rows = [{"text": "where is it", "label": "lost_card"}, {"text": "how much", "label": "bank_fee"}]
    folder = data("clustering")
    write_rows(folder / "train.jsonl", rows)
    own = pool_of(folder, "clustering", classes="all-names")
    given = file_pool(PairFile(write_rows(tmp_path / "pairs.jsonl", [*rows, {"label": "card_fee"}])))
    assert own.pairs == given.pairs
    assert (own.classes, given.classes) == (("lost card", "bank fee"), ("lost card", "bank fee", "card fee"))


def test_wrong_tasks_name_classes_where_the_task_does(tiny_encoder: Encoder) -> None:
    named = Pool(tuple(replace(pair, names_class=True) for pair in pool(10).pairs), "a pool")
    for given, names in ((pool(10), False), (named, True), (None, False)):
        for control in ("wrong-task", "random"):
            found = shown(tiny_encoder, given, control=control).demonstrations
            assert [one.names_class for one in found] == [names] * 3
    assert all(one.names_class for one in shown(tiny_encoder, named).demonstrations)


def test_random_is_unit_vectors_in_the_place_of_demonstrations(tiny_encoder: Encoder) -> None:
    true, noise = shown(tiny_encoder, pool(10)), shown(tiny_encoder, None, control="random")
    assert noise.task == true.task
    assert noise.vectors_SE.shape == true.vectors_SE.shape == (6, tiny_encoder.dim)
    assert noise.vectors_SE.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(noise.vectors_SE, axis=1), 1, rtol=1e-5)
    cosines_SS = noise.vectors_SE @ noise.vectors_SE.T - np.eye(6)
    assert np.abs(cosines_SS).max() < 0.7
    for seed, same in ((0, True), (1, False)):
        again = shown(tiny_encoder, None, control="random", seed=seed)
        assert np.array_equal(noise.vectors_SE, again.vectors_SE) == same
    [under_noise_E] = tiny_encoder.encode_queries(["q"], prompt=noise)
    [under_true_E] = tiny_encoder.encode_queries(["q"], prompt=true)
    assert not np.array_equal(under_noise_E, under_true_E)


@pytest.mark.parametrize("control", [None, "shuffled", "wrong-task"])
def test_texts_show_what_soft_demonstrations_show(tiny_encoder: Encoder, control: Control | None) -> None:
    soft = shown(tiny_encoder, pool(10), k=2, control=control)
    text = shown(tiny_encoder, pool(10), k=2, control=control, kind="text")
    assert texts(text) == texts(soft)
    assert (soft.kind, text.kind) == ("soft", "text")


def test_texts_have_no_random_control(tiny_encoder: Encoder, tiny_text_folder: Path) -> None:
    trained_on_texts = Encoder.load(tiny_text_folder, device="cpu", dtype="float32")
    for encoder, kind in ((tiny_encoder, "text"), (trained_on_texts, None)):
        with pytest.raises(UserError, match="text demonstrations have no vectors; leave this control out"):
            shown(encoder, pool(10), control="random", kind=kind)  # type: ignore[arg-type]
