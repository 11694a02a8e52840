"""The filter grammar: what it means, that it can be written down again, and what each mistake is told."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_helpers import a_document

from epic_search.errors import UserError
from epic_search.index.fields import MAX_INT, declared, inferred, misfit, path
from epic_search.index.filter_parser import parse
from epic_search.index.filters import And, Compare, Exists, Filter, In, Not, Or

FIELDS = {
    "id": "keyword",
    "lang": "keyword",
    "year": "int",
    "price": "float",
    "open": "bool",
    "when": "datetime",
    "author.name": "keyword",
    "odd key": "keyword",
    "not": "keyword",
    'q"\\': "keyword",
}

VALUES = {
    "keyword": st.text(max_size=20),
    "int": st.integers(-MAX_INT, MAX_INT),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "datetime": st.datetimes(timezones=st.just(UTC)),
}


def conditions() -> st.SearchStrategy[Filter]:
    def of(field: str) -> st.SearchStrategy[Filter]:
        kind = FIELDS[field]
        ordered = ["=", "<", "<=", ">", ">="] if kind in ("int", "float", "datetime") else ["="]
        return st.one_of(
            st.builds(Compare, st.just(field), st.sampled_from(ordered), VALUES[kind]),
            st.builds(In, st.just(field), st.lists(VALUES[kind], min_size=1, max_size=3).map(tuple)),
            st.builds(Exists, st.just(field)),
        )

    return st.sampled_from(sorted(FIELDS)).flatmap(of)


def filters() -> st.SearchStrategy[Filter]:
    def larger(part: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
        several = st.lists(part, min_size=2, max_size=3).map(tuple)
        return st.one_of(st.builds(Not, part), st.builds(And, several), st.builds(Or, several))

    return st.recursive(conditions(), larger, max_leaves=8)


@given(filters())
@settings(max_examples=300, deadline=None)
def test_a_filter_s_text_means_the_filter(filter):
    assert parse(str(filter), FIELDS) == filter


@given(st.text(alphabet="ablnye r()=!<>,'\"\\0129.-", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_filter_or_a_mistake_that_is_pointed_at(text):
    try:
        parsed = parse(text, FIELDS)
    except UserError as error:
        assert error.pointer is not None and error.pointer[0] == text
        assert 0 <= error.pointer[1] <= len(text)
    else:
        assert parse(str(parsed), FIELDS) == parsed


YEAR, ENGLISH = Compare("year", ">=", 2020), Compare("lang", "=", "en")


@pytest.mark.parametrize(
    ("text", "filter"),
    [
        ("year>=2020 and lang=en", And((YEAR, ENGLISH))),
        ("year >= 2020 AND NOT lang = 'en'", And((YEAR, Not(ENGLISH)))),
        ("year>=2020 or lang=en and open=true", Or((YEAR, And((ENGLISH, Compare("open", "=", True)))))),
        ("(year>=2020 or lang=en) and open=False", And((Or((YEAR, ENGLISH)), Compare("open", "=", False)))),
        ("lang in (en, 'd e', \"it's\")", In("lang", ("en", "d e", "it's"))),
        ("lang != en", Not(ENGLISH)),
        ("not price exists", Not(Exists("price"))),
        ("price < -1e3", Compare("price", "<", -1000.0)),
        ("price = 3", Compare("price", "=", 3.0)),
        ("id = 42", Compare("id", "=", "42")),
        ("author.name = 'Ada Lovelace'", Compare("author.name", "=", "Ada Lovelace")),
        ('"odd key" = x and "not" = y', And((Compare("odd key", "=", "x"), Compare("not", "=", "y")))),
        ("when > 2024-05-17", Compare("when", ">", datetime(2024, 5, 17, tzinfo=UTC))),
        ("when = 2024-05-17T09:30:00+02:00", Compare("when", "=", datetime(2024, 5, 17, 7, 30, tzinfo=UTC))),
        (r"lang = 'it\'s'", Compare("lang", "=", "it's")),
    ],
)
def test_meaning(text, filter):
    assert parse(text, FIELDS) == filter


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        ("", 0, "it is empty"),
        ("yaer>=2020", 0, "unknown field 'yaer'; fields of this index: author.name (keyword), id (keyword), lang"),
        ("year>=2020 lang=en", 11, "expected 'and', 'or' or the end"),
        ("year>=2020 and", 14, "expected the name of a field"),
        ("year>=2020 and and lang=en", 15, "expected the name of a field"),
        ("(year>=2020", 11, "expected 'and', 'or' or ')'"),
        ("year>=2020)", 10, "expected 'and', 'or' or the end"),
        ("year 2020", 5, "expected one of = != < <= > >= 'in' 'exists'"),
        ("year > > 2020", 7, "expected a value here ('year' is of type int)"),
        ("year == 2020", 6, "expected a value here ('year' is of type int); for '==' write '='"),
        ("year=>2020", 5, "for '=>' write '>='"),
        ("year <> 2020", 6, "for '<>' write '!='"),
        ("year = twenty", 7, "'twenty' does not fit 'year', which is of type int: write a whole number"),
        ("year = 2020.5", 7, "does not fit"),
        ("year = 99999999999999999999", 7, "up to 9,007,199,254,740,992"),
        ("price = nan", 8, "a number such as 0.5"),
        ("open = yes", 7, "write true or false"),
        ("when > 2024-13-01", 7, "a date such as 2024-05-17"),
        ("lang < en", 5, "'lang' is of type keyword, which has no order"),
        ("lang in en", 8, "expected '(' and values"),
        ("lang in (en", 11, "expected ',' or ')'"),
        ("lang in ()", 9, "expected a value"),
        ("lang = 'en", 7, "this quote is not closed"),
        ("lang = \\en", 7, "is not expected"),
        ("((((" * 20 + "lang=en", 50, "nested too deeply"),
    ],
)
def test_mistakes_are_pointed_at(text, at, said):
    with pytest.raises(UserError) as raised:
        parse(text, FIELDS)
    assert raised.value.pointer == (text, at)
    assert said in str(raised.value)


def test_a_long_filter_is_not_read():
    with pytest.raises(UserError, match=r"has 20,000 characters; it may have 10,000"):
        parse("a" * 20_000, FIELDS)


@pytest.mark.parametrize("name", ["year", "author.name", "odd key", "日本", "a-b"])
def test_paths_name_keys_of_the_payload(name):
    expected = {"author.name": "payload.author.name", "odd key": 'payload."odd key"', "日本": 'payload."日本"'}
    assert path(name) == expected.get(name, f"payload.{name}")


def test_declarations():
    assert declared(["year:int", "a:b:keyword", "author.name:keyword"]) == {
        "year": "int",
        "a:b": "keyword",
        "author.name": "keyword",
    }
    for text, said in [
        ("year", "write NAME:TYPE, with TYPE one of keyword, int, float, bool, datetime"),
        ("year:number", "'year:number' declares no field"),
        (":int", "declares no field"),
        ("id:int", "the document's own id"),
        ("a..b:int", "cannot name a field"),
    ]:
        with pytest.raises(UserError, match=said):
            declared([text])
    with pytest.raises(UserError, match="declared twice, as int and as float"):
        declared(["year:int", "year:float"])


def test_inference():
    documents = [
        a_document(year=2020, lang="en", price=1, open=True, when="2024-05-17", tags=["a", "b"], mixed=1, obj={"a": 1}),
        a_document(year=None, lang="de", price=1.5, open=False, when="2024-05-17T10:00:00Z", mixed="x", body="x" * 500),
        a_document(id=3, never=None, empty=[]),
    ]
    assert inferred(documents) == {
        "year": "int",
        "lang": "keyword",
        "price": "float",
        "open": "bool",
        "when": "datetime",
        "tags": "keyword",
    }


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("keyword", ["", "x", ["x", None], None, []], [1, ["x", 1], {"a": "x"}]),
        ("int", [0, -5, [1, 2]], [1.0, True, "1", 2**60]),
        ("float", [0, 1.5], [True, "1.5"]),
        ("bool", [True, [False]], [0, "true"]),
        ("datetime", ["2024-02-29", "2024-02-29 10:00:00.5+01:00"], ["2023-02-29", "20240229", "2024-02-29T10:00", 5]),
    ],
)
def test_what_fits_a_type(kind, good, bad):
    for value in good:
        assert misfit(a_document(a={"b": value}), "a.b", kind) is None
    for value in bad:
        assert misfit(a_document(a={"b": value}), "a.b", kind) is not None
