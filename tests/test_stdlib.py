"""The standard library as documents and training pairs."""

import sys
from itertools import islice

import pytest

from epic_search import stdlib


@pytest.fixture(scope="module")
def entries() -> dict[str, stdlib.Entry]:
    found = list(stdlib.entries())
    named = {entry.name: entry for entry in found}
    assert len(named) == len(found), "a name comes twice"
    return named


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return list(stdlib.pairs())


def test_there_is_enough_to_search(entries: dict[str, stdlib.Entry]) -> None:
    assert len(entries) > 5000
    assert {entry.kind for entry in entries.values()} == {"module", "class", "function", "method"}
    assert all(entry.docstring.strip() for entry in entries.values())


@pytest.mark.parametrize(
    ("name", "kind", "signature", "says"),
    [
        ("json.loads", "function", "json.loads(s, *, cls=None, ", "Deserialize"),
        ("pathlib.Path.glob", "method", "pathlib.Path.glob(", "existing files"),
        (
            "builtins.str.split",
            "method",
            "builtins.str.split(sep=None, maxsplit=-1)",
            "list of the substrings",
        ),
        ("math.sqrt", "function", "math.sqrt(x, /)", "square root"),
        ("builtins.max", "function", "builtins.max(iterable, *", "biggest item"),
        ("os.listdir", "function", "os.listdir(path=None)", "names of the files"),
        ("csv", "module", "csv", "CSV"),
    ],
)
def test_what_an_entry_says(entries: dict[str, stdlib.Entry], name: str, kind: str, signature: str, says: str) -> None:
    entry = entries[name]
    assert entry.kind == kind
    assert entry.signature.startswith(signature)
    assert says in entry.docstring


@pytest.mark.parametrize(
    "name",
    [
        "asyncio.run",
        "concurrent.futures.Future.result",
        "tomllib.load",
        "os.path.join",
        "decimal.Decimal.sqrt",
    ],
)
def test_names_are_those_that_users_import(entries: dict[str, stdlib.Entry], name: str) -> None:
    assert name in entries


def test_methods_lose_self_and_properties_have_no_parentheses(entries: dict[str, stdlib.Entry]) -> None:
    assert entries["argparse.ArgumentParser.error"].signature == "argparse.ArgumentParser.error(message)"
    assert entries["pathlib.PurePath.suffix"].signature == "pathlib.PurePath.suffix"
    assert not [entry.name for entry in entries.values() if "(self" in entry.signature]


def test_a_class_without_docstring_says_so(entries: dict[str, stdlib.Entry]) -> None:
    reader = entries["csv.DictReader"]
    assert reader.signature.startswith("csv.DictReader(f, fieldnames=None")
    assert "module csv" in reader.docstring
    assert "CSV" in reader.docstring
    assert reader.docstring.endswith("(This class has no docstring.)")


def test_nothing_private_and_no_test_suites(entries: dict[str, stdlib.Entry]) -> None:
    for entry in entries.values():
        parts = entry.name.split(".")
        assert not any(part.startswith("_") for part in parts), entry.name
        assert not {"test", "tests", "idlelib", "lib2to3"} & set(entry.module.split(".")), entry.name


def test_source_is_short_and_without_its_docstring(entries: dict[str, stdlib.Entry]) -> None:
    sources = [entry for entry in entries.values() if entry.source]
    assert len(sources) > 2000
    assert max(len(entry.source.splitlines()) for entry in sources) <= 25
    assert entries["textwrap.fill"].source == "w = TextWrapper(width=width, **kwargs)\nreturn w.fill(text)"


def test_python_modules_are_not_imported() -> None:
    loaded = set(sys.modules)
    list(stdlib.entries())
    new = {name for name in set(sys.modules) - loaded if hasattr(sys.modules[name], "__file__")}
    assert not {name for name in new if str(sys.modules[name].__file__).endswith(".py")}


def test_documents_begin_with_the_well_known() -> None:
    first = list(stdlib.documents(limit=2000))
    assert len(first) == 2000
    assert set(first[0]) == {"_id", "title", "text", "module", "kind"}
    names = {document["_id"] for document in first}
    assert {"builtins.open", "builtins.dict.get", "os.walk", "json.dumps", "csv.DictReader"} <= names
    assert {"shutil.copytree", "subprocess.run", "re.findall", "sqlite3.connect", "logging"} <= names
    assert first[:50] == list(islice(stdlib.documents(), 50))


def test_pairs(pairs: list[tuple[str, str]]) -> None:
    assert len(pairs) > 4000
    assert len({query.lower() for query, _ in pairs}) == len(pairs)
    assert len({positive for _, positive in pairs}) == len(pairs)
    for query, positive in pairs:
        assert len(query.split()) >= 3
        assert positive.strip()
        assert "\n" not in query
        assert query not in positive.split("\n", maxsplit=1)[1:]


def test_pairs_in_both_forms(pairs: list[tuple[str, str]]) -> None:
    positives = dict(pairs)
    joined = positives["Join two or more pathname components, inserting '/' as needed."]
    assert joined.startswith("os.path.join(a, *p)\nIf any component is an absolute path")
    assert positives["Return the square root of x."] == "math.sqrt(x, /)"
    tail = positives[
        "Iterate over this subtree and yield all existing files (of any kind, including directories)"
        " matching the given relative pattern."
    ]
    assert tail.startswith("pathlib.Path.glob(pattern")
