"""Mined negatives: near, no answers, and below the margin; the file appears whole or not at all."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from epic_search.encoder import Encoder
from epic_search.errors import UserError
from epic_search.training.mining import Mined, MiningProgress, Rules, mine
from epic_search.training.teachers import EncoderTeacher, find_teacher

WORDS = ["apple", "river", "stone", "cloud", "tiger", "paper", "light", "ocean", "metal", "honey"]


class TableTeacher:
    """A teacher whose scores stand in a table: {passage: score with every query}; 0 for the others."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores
        self.tasks: list[str | None] = []

    def encode_queries(self, texts: Sequence[str], *, task: str | None, progress: Callable[[int], None]) -> np.ndarray:
        self.tasks.append(task)
        progress(len(texts))
        return np.tile(np.array([1.0, 0.0], dtype=np.float32), (len(texts), 1))

    def encode_passages(self, texts: Sequence[str], *, progress: Callable[[int], None]) -> np.ndarray:
        progress(len(texts))
        scores_P = np.array([self.scores.get(text, 0.0) for text in texts], dtype=np.float32)
        return np.stack([scores_P, np.sqrt(1 - scores_P**2)], axis=1)


def row(query: str, positive: str, *negatives: str, **fields: object) -> dict[str, object]:
    return {"query": query, "positive": positive, "negatives": list(negatives), **fields}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: dict[str, object], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def read(path: Path) -> list[dict]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def pairs(count: int = len(WORDS), **fields: object) -> list[dict[str, object]]:
    return [row(f"what is {word}", f"{word} is a thing", **fields) for word in WORDS[:count]]


def test_rows_keep_their_order_and_fields(tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder) -> None:
    rows = pairs(source="made up")
    rows[3]["task"] = rows[7]["task"] = "find it"
    out = tmp_path / "new" / "mined.jsonl.gz"
    seen: list[MiningProgress] = []
    teacher = TableTeacher({row["positive"]: 0.9 for row in rows[:1]})
    results = mine(
        [write(*rows)], out=out, encoder=tiny_encoder, teacher=teacher, rules=Rules(margin=1.0), progress=seen.append
    )
    found = read(out)
    assert [{**new, "negatives": []} for new in found] == rows
    assert [(each.task, each.pairs) for each in results] == [(None, 8), ("find it", 2)]
    assert teacher.tasks == [None, "find it"]
    assert found[3]["negatives"] == [rows[7]["positive"]], "passages of another task are no candidates"
    assert {step.stage for step in seen} == {"indexing", "searching", "teacher"}
    assert (seen[-1].task, seen[-1].tasks, seen[-1].done) == (2, 2, seen[-1].total)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_positive_aware_rule(tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder) -> None:
    rows = [row("the query", "the answer"), row("another query", "too good"), row("a third", "good enough")]
    teacher = TableTeacher({"the answer": 0.8, "too good": 0.77, "good enough": 0.75})
    out = tmp_path / "mined.jsonl"
    [mined] = mine([write(*rows)], out=out, encoder=tiny_encoder, teacher=teacher, rules=Rules(margin=0.95))
    found = [set(new["negatives"]) for new in read(out)]
    assert found == [{"good enough"}, set(), set()], "0.75 <= 0.95 x 0.8 < 0.77; no other is 5 % below the rest"
    assert (mined.judged, mined.dropped, mined.counts) == (6, 5, {0: 2, 1: 1})
    assert mined.dropped_share == pytest.approx(5 / 6)


def test_answers_and_near_duplicates_are_no_negatives(
    tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder
) -> None:
    rows = [
        row("How big?", "Very big.", "old one"),
        row("how big", "Rather big."),
        row("other", "VERY BIG"),
        row("else", "how big!"),
        row("one more", "Old one!"),
        row("and more", "fine"),
        row("and the last", "Fine!"),
    ]
    teacher = TableTeacher({"Very big.": 0.9, "Rather big.": 0.9})
    out = tmp_path / "mined.jsonl"
    mine([write(*rows)], out=out, encoder=tiny_encoder, teacher=teacher)
    first, second = read(out)[:2]
    assert first["negatives"][0] == "old one"
    assert len(first["negatives"]) == 2 and first["negatives"][1] in {"fine", "Fine!"}
    assert len(second["negatives"]) == 2
    assert {text.lower().strip("!") for text in second["negatives"]} == {"old one", "fine"}


def test_replace(tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder) -> None:
    rows = [row("q", "answer", "bad", "ugly")]
    teacher = TableTeacher({"answer": 0.9, "bad": 0.88})
    out = tmp_path / "mined.jsonl"
    mine([write(*rows)], out=out, encoder=tiny_encoder, teacher=teacher, rules=Rules(replace=True))
    assert read(out)[0]["negatives"] == ["ugly"]
    mine([write(*rows)], out=out, encoder=tiny_encoder, teacher=teacher)
    assert read(out)[0]["negatives"] == ["bad", "ugly"]


def test_the_encoder_judges_by_default(tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder) -> None:
    path, out = write(*pairs()), tmp_path / "mined.jsonl"
    [alone] = mine([path], out=out, encoder=tiny_encoder, rules=Rules(margin=0.99))
    by_default = read(out)
    [judged] = mine(
        [path], out=out, encoder=tiny_encoder, teacher=EncoderTeacher(tiny_encoder), rules=Rules(margin=0.99)
    )
    assert read(out) == by_default
    assert alone == judged
    assert alone.negatives > 0 and alone.dropped > 0, "else this test compares nothing"
    assert alone.found == len(WORDS)


def test_a_positive_out_of_sight_gives_no_negatives(
    tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder
) -> None:
    rows = pairs()
    out = tmp_path / "mined.jsonl"
    [mined] = mine([write(*rows)], out=out, encoder=tiny_encoder, rules=Rules(negatives=1, depth=1, margin=1.0))
    assert mined.counts == {0: len(rows)}, "the one nearest is the positive, or better than it"
    assert mined.dropped == mined.judged == len(rows) - mined.found


def test_nearest_first_and_skip(tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder) -> None:
    path, out = write(*pairs()), tmp_path / "mined.jsonl"
    teacher = TableTeacher({row["positive"]: 0.5 for row in pairs()})  # all alike
    rules = {"negatives": 3, "margin": 1.0}
    mine([path], out=out, encoder=tiny_encoder, teacher=teacher, rules=Rules(**rules))
    near = read(out)
    mine([path], out=out, encoder=tiny_encoder, teacher=teacher, rules=Rules(**rules, skip=2))
    assert [new["negatives"][0] for new in read(out)] == [old["negatives"][2] for old in near]
    queries_QE = tiny_encoder.encode_queries([old["query"] for old in near])
    for query_E, old in zip(queries_QE, near, strict=True):
        scores = tiny_encoder.encode_passages(old["negatives"]) @ query_E
        assert (np.diff(scores) <= 1e-5).all()


def test_several_files_are_one_pool_and_the_bytes_repeat(
    tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder
) -> None:
    files = [write(*pairs()[:5], name="a.jsonl"), write(*pairs()[5:], name="b.jsonl")]
    outs = [tmp_path / "1.jsonl.gz", tmp_path / "2.jsonl.gz"]
    results: list[list[Mined]] = [
        mine(files, out=out, encoder=tiny_encoder, teacher=TableTeacher({r["positive"]: 0.5 for r in pairs()[:5]}))
        for out in outs
    ]
    assert results[0][0].passages == len(WORDS)
    assert set(read(outs[0])[0]["negatives"]) == {row["positive"] for row in pairs()[5:]}
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_mistakes_leave_nothing_behind(tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder) -> None:
    path = write({"query": "no positive"})
    out = tmp_path / "mined.jsonl"
    with pytest.raises(UserError, match="line 1: a pair needs the texts query and positive"):
        mine([path], out=out, encoder=tiny_encoder)
    with pytest.raises(UserError, match="there is no pair in"):
        mine([write(name="empty.jsonl")], out=out, encoder=tiny_encoder)
    assert not list(tmp_path.glob("mined*"))
    with pytest.raises(UserError, match="one of the files to mine from"):
        mine([path], out=path, encoder=tiny_encoder)
    with pytest.raises(UserError, match=r"must end in \.jsonl or \.jsonl\.gz"):
        mine([path], out=tmp_path / "mined.json", encoder=tiny_encoder)
    with pytest.raises(UserError, match="cannot be written"):
        mine([path], out=path / "mined.jsonl", encoder=tiny_encoder)
    with pytest.raises(UserError, match="raise --depth to 9 or more"):
        Rules(negatives=7, skip=2, depth=5)


def test_an_old_output_survives_a_mistake(tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder) -> None:
    out = tmp_path / "mined.jsonl"
    out.write_text("what was there\n")
    with pytest.raises(UserError):
        mine([write({"query": "no positive"})], out=out, encoder=tiny_encoder)
    assert out.read_text() == "what was there\n"


def test_what_the_index_cannot_hold(tmp_path: Path, write: Callable[..., Path], tiny_encoder: Encoder) -> None:
    rows = [row("q", "answer", "with \0 in it"), row("other", "fine")]
    out = tmp_path / "mined.jsonl"
    teacher = TableTeacher({"answer": 0.9})
    [mined] = mine([write(*rows)], out=out, encoder=tiny_encoder, teacher=teacher)
    assert mined.unindexed == 1
    assert read(out)[0]["negatives"] == ["with \0 in it", "fine"]


def test_teachers(tiny_encoder_folder: Path, tiny_encoder: Encoder, tmp_path: Path) -> None:
    teacher = find_teacher(str(tiny_encoder_folder), device="cpu")
    prompt = tiny_encoder.prompt(task="find it")
    same_passage = teacher.encode_passages(["a text"])[0] @ tiny_encoder.encode_passages(["a text"])[0]
    same_query = (
        teacher.encode_queries(["a text"], task="find it")[0]
        @ tiny_encoder.encode_queries(["a text"], prompt=prompt)[0]
    )
    assert same_passage > 0.999 and same_query > 0.999, "but for bfloat16, where the machine has it"
    with pytest.raises(UserError, match=r"it has no modules\.json"):
        find_teacher(f"st:{_plain_weights(tmp_path)}")
    with pytest.raises(UserError, match="names no weights"):
        find_teacher("st:absent model")


def test_a_sentence_transformers_teacher(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertTokenizerFast

    bert = _plain_weights(tmp_path)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(bert)
    model = SentenceTransformer(
        modules=[Transformer(str(bert), max_seq_length=16), Pooling(16)], device="cpu", prompts={"query": "a b c "}
    )
    folder = tmp_path / "teacher"
    model.save_pretrained(str(folder))

    teacher = find_teacher(f"st:{folder}", device="cpu")
    done: list[int] = []
    passages_PE = teacher.encode_passages(["a b", "c d e"], progress=done.append)
    queries_QE = teacher.encode_queries(["a b"], task="not for it")
    assert passages_PE.dtype == np.float32 and passages_PE.shape == (2, 16) and sum(done) == 2
    assert np.allclose(np.linalg.norm(passages_PE, axis=1), 1, atol=1e-5)
    assert not np.allclose(queries_QE[0], passages_PE[0], atol=1e-3), "queries carry the model's own prompt"


def _plain_weights(tmp_path: Path) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path / "bert"
    config = BertConfig(vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config).save_pretrained(folder)
    return folder
