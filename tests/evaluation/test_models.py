"""Models by their names: ours, sentence-transformers ones and BM25, each with a name and a revision of its own."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mteb")

from datasets import Dataset

from epic_search.encoder import Encoder
from epic_search.errors import UserError
from epic_search.evaluation import models as module
from epic_search.evaluation.models import BM25Model, Condition, EncoderModel, Settings, find_model
from epic_search.evaluation.tasks import folder_task
from tests.evaluation.conftest import Data, Evaluate

DOCUMENTS = [
    {"id": "bank", "title": "", "text": "Money lies in the bank."},
    {"id": "river", "title": "River", "text": "Water flows past trees and fields."},
    {"id": "guitar", "title": "", "text": "A guitar has six strings, and songs are played on guitars."},
    {"id": "empty", "title": "", "text": ""},
]


def find(reference: str, **settings: Any) -> Any:
    return find_model(reference, settings=Settings(device="cpu", **settings))


def bind(model: Any, work: Path = Path()) -> Any:
    return model.bind(instruction="Find the like", pool=None, condition=Condition(), work=work)


# --- finding


def test_an_encoder_by_its_folder(tiny_encoder_folder: Path, tiny_encoder: Any) -> None:
    model = find(str(tiny_encoder_folder))
    assert (model.label, model.name, model.demos_kind) == ("tiny", "local/tiny", "soft")
    assert tiny_encoder.fingerprint.startswith(model.revision) and len(model.revision) == 16
    assert "encoder" not in vars(model), "finding a model loads no weights"
    renamed = find(f"mine={tiny_encoder_folder}")
    assert (renamed.label, renamed.name, renamed.revision) == ("mine", "local/mine", model.revision)


def test_other_weights_are_another_revision(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_encoder_folder, folder)
    assert find(str(folder)).revision == find(str(tiny_encoder_folder)).revision
    projectors = folder / "projectors.safetensors"
    changed = bytearray(projectors.read_bytes())
    changed[-1] ^= 1
    projectors.write_bytes(changed)
    assert find(str(folder)).revision != find(str(tiny_encoder_folder)).revision


def test_a_sentence_transformers_model_by_its_folder(sentence_transformer_folder: Path, tmp_path: Path) -> None:
    model = find(f"st:{sentence_transformer_folder}")
    assert (model.label, model.name, model.demos_kind) == ("tiny-peer", "local/tiny-peer", None)
    assert "model" not in vars(model), "finding a model loads no weights"
    assert find(f"peer=st:{sentence_transformer_folder}").label == "peer"
    copy = shutil.copytree(sentence_transformer_folder, tmp_path / "copy")
    assert find(f"st:{copy}").revision == model.revision


def test_another_pooling_is_another_revision(sentence_transformer_folder: Path, tmp_path: Path) -> None:
    """Weights are not all that makes a vector: results of mean pooling must not be taken for those of CLS pooling."""
    folder = shutil.copytree(sentence_transformer_folder, tmp_path / "changed")
    pooling = folder / "1_Pooling" / "config.json"
    assert "mean" in pooling.read_text()
    pooling.write_text(pooling.read_text().replace("mean", "cls"))
    assert find(f"st:{folder}").revision != find(f"st:{sentence_transformer_folder}").revision


def test_a_path_with_an_equals_sign(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "seed=3").symlink_to(tiny_encoder_folder)
    assert find(str(tmp_path / "seed=3")).label == "tiny"
    assert find(f"mine={tmp_path / 'seed=3'}").label == "mine"


def test_bm25() -> None:
    model = find("bm25")
    assert (model.label, find("words=bm25").label) == ("bm25", "words")
    assert model.kinds == {"retrieval", "reranking"}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("epic-maxi", "epic-maxi"),
        ("no/such/folder", "no/such/folder"),
        ("st:", "'st:' names no model; write st:FOLDER or st:ORGANISATION/NAME"),
        ("st:nobody/nothing", "nobody/nothing could not be fetched from the Hugging Face hub"),
        ("st:./no such folder", "'./no such folder' names no weights"),
    ],
)
def test_a_model_that_is_not_there(reference: str, said: str, no_network: None) -> None:
    with pytest.raises(UserError) as error:
        find(reference)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_encoder_is_no_sentence_transformers_model(tiny_encoder_folder: Path) -> None:
    with pytest.raises(UserError, match=r"has no modules\.json; for an encoder of epic-search leave out 'st:'"):
        find(f"st:{tiny_encoder_folder}")


@pytest.mark.parametrize(("reference", "package"), [("bm25", "bm25s"), ("st:folder", "sentence_transformers")])
def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, reference: str, package: str) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"needs {package}.*pip install 'epic-search\[eval\]'"):
        find(reference)


# --- what results are filed under


def test_conditions_and_settings_that_change_vectors_are_experiments(tiny_model: EncoderModel) -> None:
    def filed(condition: Condition, **settings: Any) -> Any:
        model = replace(tiny_model, settings=Settings(device="cpu", **settings))
        return model.meta(condition).experiment_kwargs

    assert filed(Condition()) is None
    assert filed(Condition(demos=0, seed=3)) is None
    assert filed(Condition(demos=4, seed=1)) == {"demos": 4, "seed": 1}
    assert filed(Condition(4, 1, "shuffled")) == {"demos": 4, "seed": 1, "control": "shuffled"}
    assert filed(Condition(), search="exact", max_length=32, dtype="float32") == {
        "search": "exact",
        "max_length": 32,
        "dtype": "float32",
    }
    assert filed(Condition(4, 1, classes="names", pairs="abc")) == {
        "demos": 4,
        "seed": 1,
        "classes": "names",
        "pairs": "abc",
    }
    peer = BM25Model("bm25")
    assert peer.meta(Condition(4, 1)).experiment_kwargs is None


def test_max_length_caps_what_an_encoder_reads(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    capped, longer = find(str(tiny_encoder_folder), max_length=16), find(str(tiny_encoder_folder), max_length=4096)
    assert (capped.encoder.config.max_length, longer.encoder.config.max_length) == (16, 64)
    assert bind(capped, tmp_path).settings["max_length"] == 16


def test_dim_cuts_the_vectors_of_our_encoders(
    tiny_config: Any, tiny_encoder_folder: Path, sentence_transformer_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config.model_copy(update={"matryoshka": [16]})
    Encoder.create(config, start=tiny_encoder_folder, device="cpu").save(tmp_path / "encoder")
    small = find(str(tmp_path / "encoder"), dim=16)
    assert bind(small, tmp_path).model.encoder.dim == 16
    assert small.meta(Condition()).experiment_kwargs == {"dim": 16}
    with pytest.raises(UserError, match="8 were asked for"):
        find(str(tmp_path / "encoder"), dim=8)
    assert find(f"st:{sentence_transformer_folder}", dim=8).meta(Condition()).experiment_kwargs is None


def test_what_stands_behind_max_length_changes_nothing(tiny_encoder_folder: Path) -> None:
    encoder = find(str(tiny_encoder_folder), max_length=16, dtype="float32").encoder
    whole_E, cut_E = encoder.encode_queries(["sixteen letters.", "sixteen letters. And something else"])
    assert whole_E @ cut_E == pytest.approx(1, abs=1e-5)


# --- sentence-transformers


def test_a_peer_is_evaluated_as_its_own_library_encodes(
    sentence_transformer_folder: Path, data: Data, evaluate: Evaluate, out: Path
) -> None:
    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer

    from epic_search.evaluation.results import read_results

    folder = data("sts")
    peer = find(f"st:{sentence_transformer_folder}")
    ran = evaluate(folder_task(folder), folder_task(data("retrieval")), models=[peer], demos=(0, 2))
    assert ran.jobs == [
        ("done", "tiny-peer", "sts", "no demonstrations"),
        ("done", "tiny-peer", "retrieval", "no demonstrations"),
    ]
    retrieval, sts = read_results(out)
    task = folder_task(folder).make()
    task.load_data()
    rows = task.dataset["test"]
    model = SentenceTransformer(str(sentence_transformer_folder), device="cpu")
    a_NE, b_NE = model.encode(list(rows["sentence1"])), model.encode(list(rows["sentence2"]))
    expected = spearmanr((a_NE * b_NE).sum(axis=1), rows["score"]).statistic
    assert sts.score == pytest.approx(expected, abs=1e-6)
    assert (sts.prompt["instruction"], sts.prompt["demonstrations"]) == (None, [])
    assert (retrieval.settings["search"], retrieval.settings["max_length"]) == ("exact", 48)
    assert retrieval.cost["queries"] == 16 and retrieval.cost["texts"] == 32
    assert retrieval.cost["query_tokens"] and 10 < retrieval.cost["query_tokens"] < 48


def test_max_length_caps_what_a_peer_reads(sentence_transformer_folder: Path) -> None:
    assert bind(find(f"st:{sentence_transformer_folder}", max_length=8)).settings["max_length"] == 8
    assert bind(find(f"st:{sentence_transformer_folder}", max_length=999)).settings["max_length"] == 48
    model = find(f"st:{sentence_transformer_folder}", max_length=8)
    assert model.meta(Condition()).experiment_kwargs == {"max_length": 8}


def test_dtype_is_for_peers_too(sentence_transformer_folder: Path) -> None:
    model = find(f"st:{sentence_transformer_folder}", dtype="bfloat16")
    assert model.meta(Condition()).experiment_kwargs == {"dtype": "bfloat16"}
    assert bind(model).settings["dtype"] == "bfloat16"
    with pytest.raises(UserError, match=r"int8.*use bfloat16$"):
        find(f"st:{sentence_transformer_folder}", dtype="int8")


# --- BM25


def bm25() -> Any:
    bound = bind(find("bm25"))
    bound.model.index(Dataset.from_list(DOCUMENTS))
    return bound


def asked(*texts: str) -> Dataset:
    return Dataset.from_dict({"id": [f"q{i}" for i in range(len(texts))], "text": list(texts)})


def test_the_document_with_the_words_of_the_query_comes_first() -> None:
    found = bm25().model.search(asked("playing songs on the guitar", "a river", "WATER and field"), top_k=10)
    first = [next(iter(documents)) for documents in found.values()]
    assert first == ["guitar", "river", "river"], "words are stemmed, cases are one, and titles count"
    assert list(found["q0"].values()) == sorted(found["q0"].values(), reverse=True)
    assert found["q0"]["guitar"] > 0 == found["q0"]["bank"]


def test_a_rare_word_weighs_more_than_a_common_one() -> None:
    bound = bind(find("bm25"))
    rows = [{"id": f"d{i}", "title": "", "text": f"common word number{i}"} for i in range(9)]
    bound.model.index(Dataset.from_list([*rows, {"id": "rare", "title": "", "text": "unusual thing number9"}]))
    [found] = bound.model.search(asked("common unusual"), top_k=3).values()
    assert next(iter(found)) == "rare" and len(found) == 3


def test_only_candidates_are_ranked_where_they_are_given() -> None:
    found = bm25().model.search(asked("guitar", "river"), top_k=10, top_ranked={"q0": ["bank", "empty"], "q1": []})
    assert {query: set(documents) for query, documents in found.items()} == {"q0": {"bank", "empty"}, "q1": set()}


def test_a_query_of_unknown_words_finds_nothing_relevant() -> None:
    found = bm25().model.search(asked("xylophone", "the of and", ""), top_k=10)
    assert all(set(documents.values()) == {0.0} for documents in found.values())


def test_bm25_costs() -> None:
    bound = bm25()
    bound.model.search(asked("guitar", "river"), top_k=10)
    assert (bound.meter.queries, bound.meter.texts, bound.meter.query_tokens) == (2, 6, 0)
    assert bound.settings["search"] == "bm25" and 0 <= bound.query_seconds("guitar") < 1
