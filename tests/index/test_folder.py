"""Names, the list of indexes, deletion: nothing outside an index is ever touched."""

import json
import os

import pytest

from epic_search.errors import UserError
from epic_search.index import delete_index, home, index_corpus, list_indexes
from epic_search.index.lock import Lock

BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "/etc",
    "a\0b",
    ".hidden",
    "-x",
    "x.",
    "con",
    "NUL.txt",
    "a b",
]


def test_home_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EPIC_SEARCH_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("EPIC_SEARCH_HOME")
    assert str(home()) == "indexes"


@pytest.mark.parametrize("name", [*BAD_NAMES, "x" * 101, "naïve"])
def test_bad_names(corpus, encoder, home, name):
    with pytest.raises(UserError, match="cannot name an index"):
        index_corpus(corpus(1), name=name, encoder=encoder, home=home)
    with pytest.raises(UserError, match="cannot name an index"):
        delete_index(name, home)
    assert not home.exists()


def test_list(corpus, encoder, home):
    assert list_indexes(home) == []
    index_corpus(corpus(4), name="b", encoder=encoder, home=home, task="find")
    index_corpus(corpus(3), name="a.1", encoder=encoder, home=home)
    (home / "README.md").write_text("not an index")
    (home / "empty").mkdir()
    first, second = list_indexes(home)
    assert (first.name, first.documents, first.passages, first.encoder) == ("a.1", 3, 3, "stand-in")
    assert (second.name, second.task, second.demonstrations, second.status) == ("b", "find", 0, "complete")
    assert 10_000 < second.size < 100_000_000


def test_list_shows_a_damaged_index(corpus, encoder, home):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    (home / "test" / "manifest.json").write_text("{")
    (info,) = list_indexes(home)
    assert (info.status, info.documents) == ("unreadable", 0)
    assert "manifest.json" in str(info.problem)
    delete_index("test", home)
    assert list_indexes(home) == []


def test_delete(corpus, encoder, home):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home, task="t")
    delete_index("test", home)
    assert not (home / "test").exists()
    with pytest.raises(UserError, match="no index 'test'"):
        delete_index("test", home)


def test_delete_leaves_what_is_not_the_index_s(corpus, encoder, home):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    (home / "test" / "notes.txt").write_text("mine")
    delete_index("test", home)
    assert [path.name for path in (home / "test").iterdir()] == ["notes.txt"]


def test_delete_refuses_while_in_use(corpus, encoder, home):
    index_corpus(corpus(3), name="test", encoder=encoder, home=home)
    with Lock(home / "test"), pytest.raises(UserError, match=f"in use by this process .{os.getpid()}"):
        delete_index("test", home)
    assert list_indexes(home)[0].documents == 3


def test_other_folders_are_neither_deleted_nor_indexed_into(corpus, encoder, home):
    for name in ("photos", "webapp"):
        (home / name).mkdir(parents=True)
    (home / "photos" / "one.jpg").write_text("x")
    (home / "webapp" / "manifest.json").write_text(json.dumps({"name": "app"}))
    (home / "file").write_text("x")
    for name in ("photos", "webapp", "file"):
        with pytest.raises(UserError, match="no index"):
            delete_index(name, home)
        with pytest.raises(UserError, match="choose another --name"):
            index_corpus(corpus(1), name=name, encoder=encoder, home=home)
    assert (home / "photos" / "one.jpg").exists() and (home / "webapp" / "manifest.json").exists()


def test_links_are_not_followed(corpus, encoder, home, tmp_path):
    index_corpus(corpus(3), name="real", encoder=encoder, home=tmp_path / "elsewhere")
    home.mkdir()
    (home / "link").symlink_to(tmp_path / "elsewhere" / "real")
    assert list_indexes(home) == []
    with pytest.raises(UserError, match="no index"):
        delete_index("link", home)
    with pytest.raises(UserError, match="choose another --name"):
        index_corpus(corpus(3), name="link", encoder=encoder, home=home)


def test_home_that_cannot_be_made(corpus, encoder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot make the folder"):
        index_corpus(corpus(3), name="test", encoder=encoder, home=tmp_path / "file")
