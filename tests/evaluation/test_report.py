"""The report is self-contained, says what was measured, and shows text from documents as text."""

import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from results_helpers import write_result, write_run

from epic_search.errors import UserError
from epic_search.evaluation import plots, sections
from epic_search.evaluation.report import write_report
from epic_search.evaluation.results import read_results, read_run
from epic_search.evaluation.table import Entry, Table

HOSTILE = '<script>alert("1")</script> | **bold** $x_1$ \x1b[31m\u202eevil\ud800'.encode("utf-8", "replace").decode()
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "rect"}


class Page(HTMLParser):
    """Collects elements, attributes and text, and checks that elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, two kinds, demonstrations with three seeds and two controls, and a peer that lacks a kind."""
    out = tmp_path_factory.mktemp("evaluation")
    rng = np.random.default_rng(0)
    for task, kind in (("scifact", "retrieval"), ("price $5 & more", "retrieval"), ("sst2", "classification")):
        values = rng.random(40)
        write_result(out, task=task, kind=kind, model="epic-mini", values=values.tolist())
        if kind == "retrieval":
            write_result(out, task=task, kind=kind, model="bm25", values=(0.9 * values).tolist(), cost=WORDS)
        for seed in range(3):
            for control in (None, "random", "shuffled"):
                experiment = {"demos": 4, "seed": seed, **({"control": control} if control else {})}
                moved = np.clip(values + rng.normal(0.02, 0.05, 40), 0, 1).tolist()
                prompt = {"demonstrations": [[HOSTILE, f"passage {seed} {'long ' * 200}"]], "source": "training split"}
                write_result(
                    out, task=task, kind=kind, model="epic-mini", values=moved, experiment=experiment, prompt=prompt
                )
    failure = {"model": "epic-mini", "task": "npl", "condition": "no demonstrations", "error": f"OSError: {HOSTILE}"}
    command = "epic-search eval quick --demos 0,4 " + "--demos-control random " * 5
    write_run(out, models={"epic-mini": {}, "bm25": {}}, commands=[command], failures=[failure])
    write_report(out, read_results(out), run=read_run(out))
    return out


WORDS = {"query_tokens": None, "query_ms": 0.2, "encode_seconds": 0.0, "tokens": 0}


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    return Table(read_results(folder))


def test_the_page_is_whole_and_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert page.tags["script"] == page.tags["img"] == page.tags["link"] == page.tags["iframe"] == 0
    links = [value or "" for name, value in page.attributes if name in {"src", "href", "xlink:href", "action"}]
    assert all(link.startswith("#") for link in links)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.findall(r"(?:@import|url\()(?!#)", html)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(links) <= {f"#{name}" for name in ids}


def test_figures_take_their_colours_from_the_page(html: str) -> None:
    assert Page(html).tags["svg"] == 4
    assert "prefers-color-scheme: dark" in html
    assert "#0a0b" not in html
    defined = set(re.findall(r"(--[\w-]+):", html))
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= defined


def test_text_from_documents_is_shown_as_text(folder: Path, html: str) -> None:
    page = Page(html)
    assert '<script>alert("1")</script> | **bold** $x_1$' in page.text
    assert "price $5 & more" in page.text
    for text in (html, (folder / "report.md").read_text(encoding="utf-8")):
        assert not {"\x1b", "\u202e"} & set(text)
    assert "<script" not in (folder / "report.md").read_text(encoding="utf-8")


def test_a_reviewer_finds_what_is_needed(html: str) -> None:
    text = " ".join(Page(html).text.split())
    for part in (
        "epic-mini@4-shuffled",
        "95 % percentile bootstrap",
        "seeds",
        "2 x test processor",
        r"epic-search eval quick \ --demos 0,4",
        "ndcg_at_10",
        "training split",
        "clusterings",
        "Given a query, retrieve what answers it",
        "tokens per query, with its prompt",
        "1 of the evaluations failed",
    ):
        assert part in text, part


def test_markdown_tables_are_even(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) >= 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1, block


def test_the_best_and_what_cannot_be_told_from_it_are_strong(table: Table) -> None:
    grid = sections.summary(table)
    strong = {line.name: [value.strong for value in line.values] for line in grid.lines}
    assert strong["epic-mini@4"][0]
    assert not any(strong["bm25"])
    assert not any(strong["epic-mini@4-random"])
    assert [value.text for value in grid.lines[-1].values][1:] == ["-", "-", "-"]


def test_the_differences_that_matter(table: Table) -> None:
    pairs = sections.pairs_of_interest(table)
    assert [(pair.b, pair.a, len(pair.tasks)) for pair in pairs] == [
        ("epic-mini@4", "epic-mini", 3),
        ("epic-mini@4", "epic-mini@4-shuffled", 3),
        ("epic-mini@4", "epic-mini@4-random", 3),
        ("epic-mini", "bm25", 2),
        ("epic-mini@4", "bm25", 2),
    ]
    first = sections.findings(table, pairs)[1]
    assert first.startswith("epic-mini@4 against epic-mini, 3 tasks: +")
    assert ", clear; clearly up on" in first


def test_seeds_are_shown_apart(table: Table) -> None:
    line = sections.seeds(table).lines[0]
    assert [value.text for value in line.values][:2] == ["0, 1, 2", "3 of 3"]
    assert len(line.values[2].text.split(", ")) == 3


def test_one_model_on_one_task(tmp_path: Path) -> None:
    write_result(tmp_path, values=[0.2, 0.4, 0.9])
    markdown, page = write_report(tmp_path, read_results(tmp_path))
    assert "Score on Task: small, 50.00 (95 % interval" in Page(page.read_text(encoding="utf-8")).text
    assert Page(page.read_text(encoding="utf-8")).tags["svg"] == 0
    assert "| small | **" not in markdown.read_text(encoding="utf-8")


def test_results_without_items_have_no_interval(tmp_path: Path) -> None:
    write_result(tmp_path, with_items=False, score=0.4)
    write_result(tmp_path, with_items=False, score=0.5, experiment={"demos": 2, "seed": 0})
    _, page = write_report(tmp_path, read_results(tmp_path))
    text = page.read_text(encoding="utf-8")
    assert "2 scores without an interval" in text
    assert "+10.00, no interval" in text


def test_demonstrations_need_something_to_be_set_against(tmp_path: Path) -> None:
    write_result(tmp_path, experiment={"demos": 2, "seed": 0})
    table = Table(read_results(tmp_path))
    assert plots.demonstrations(table, Entry("small", 2)) is None
    write_report(tmp_path, table.results)


def test_a_model_need_not_have_run_without_demonstrations(tmp_path: Path) -> None:
    for experiment in ({"demos": 1}, {"demos": 2}, {"demos": 4, "control": "wrong-task"}):
        write_result(tmp_path, experiment={"seed": 0, **experiment})
    table = Table(read_results(tmp_path))
    assert [plots.Look(table).strength(entry) for entry in table.entries] == [0.5, 0.75, 1]
    _, page = write_report(tmp_path, table.results)
    assert "small@4-wrong-task" in page.read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    write_result(tmp_path)
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(tmp_path / "missing", read_results(tmp_path))


def test_demonstrations_from_a_file_are_set_against_none(tmp_path: Path) -> None:
    write_result(tmp_path, values=[0.2, 0.4, 0.9])
    for control in (None, "shuffled"):
        experiment = {"demos": 2, "seed": 0, "pairs": "mine-32939b12"} | ({"control": control} if control else {})
        write_result(tmp_path, values=[0.3, 0.5, 0.8], experiment=experiment)
    pairs = sections.pairs_of_interest(Table(read_results(tmp_path)))
    assert [(pair.b, pair.a) for pair in pairs] == [
        ("small@2 (pairs mine-32939b12)", "small"),
        ("small@2 (pairs mine-32939b12)", "small@2-shuffled (pairs mine-32939b12)"),
    ]
