"""Text files: which of a folder's are read, what is taken as their title, and what cannot be read."""

import os
from pathlib import Path

import pytest

from epic_search.errors import UserError
from epic_search.index import index_corpus
from epic_search.index.corpus import Corpus
from epic_search.index.document import Document
from epic_search.index.sources import html, text_files
from epic_search.index.sources.titles import markdown_title, rst_title


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    for name, text in {
        "b.md": "# A heading\n\nBody.\n",
        "a.txt": "Plain.\r\nText.",
        "sub/c.rst": "Title\n=====\n\nBody.\n",
        "sub/deep/d.html": "<title>Page</title><p>One <b>two</b>.",
        ".hidden.txt": "no",
        ".git/x.txt": "no",
        "CVS/x.txt": "no",
        "photo.png": "no",
        "table.csv": "no",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def read(*paths: Path | str, **options: object) -> tuple[dict[str, Document], Corpus, list[str]]:
    told: list[str] = []
    with Corpus(*paths, tell=told.append, **options) as corpus:
        return {document.id: document for document in corpus}, corpus, told


def kinds(corpus: Corpus) -> dict[str, str]:
    return {problem.place: problem.kind for problem in corpus.problems.first}


def test_a_folder(notes):
    found, corpus, told = read(notes)
    assert [(d.id, d.title, d.text) for d in found.values()] == [
        ("notes/a.txt", "a", "Plain.\nText."),
        ("notes/b.md", "A heading", "# A heading\n\nBody.\n"),
        ("notes/sub/c.rst", "Title", "Title\n=====\n\nBody.\n"),
        ("notes/sub/deep/d.html", "Page", "One two."),
    ]
    os.utime(notes / "a.txt", (0, 0))
    again = read(notes)[0]["notes/a.txt"]
    assert again.payload == {"path": "notes/a.txt", "modified": "1970-01-01T00:00:00+00:00"}
    assert again.digest == found["notes/a.txt"].digest, "what was only touched has not changed"
    assert told == [f"{notes}: left out 2 files of other kinds (1 .png, 1 .csv)"]
    assert corpus.bytes_read == corpus.bytes_total > 0


def test_the_same_ids_however_the_folder_is_named(notes, monkeypatch):
    monkeypatch.chdir(notes)
    everything = list(read(notes)[0])
    assert list(read(".")[0]) == list(read("../notes/")[0]) == list(read(f"{notes}/**")[0]) == everything
    assert list(read("a.txt")[0]) == ["notes/a.txt"]
    assert list(read("*.md", notes / "a.txt")[0]) == ["notes/b.md", "notes/a.txt"]
    assert list(read(f"{notes}/**/*.html")[0]) == ["notes/sub/deep/d.html"]
    with pytest.raises(UserError, match=r"no file matches '\*\.rst'"):
        read("*.rst")


def test_links_are_not_followed(notes, tmp_path):
    (tmp_path / "secret.txt").write_text("outside")
    (notes / "sub" / "loop").symlink_to(notes)
    (notes / "link.txt").symlink_to(tmp_path / "secret.txt")
    (notes / "broken.txt").symlink_to("nowhere")
    found, corpus, told = read(notes)
    assert len(found) == 4 and corpus.problems.total == 0
    assert "3 symbolic links" in told[0]
    assert len(read(f"{notes}/**")[0]) == 4
    assert read(notes / "link.txt")[0]["notes/link.txt"].text == "outside", "a link that was named is meant"


def test_files_that_cannot_be_read_are_named_and_the_rest_goes_on(notes, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_FILE_BYTES", 1000)
    (notes / "binary.txt").write_bytes(b"a\0b")
    (notes / "latin.txt").write_bytes(b"caf\xe9")
    (notes / "empty.md").write_bytes(b" \n")
    (notes / "large.txt").write_bytes(b"x" * 1001)
    (notes / "odd.html").write_bytes(b'<meta charset="base64">x')
    Path(os.fsdecode(os.fsencode(notes) + b"/\xff.txt")).write_text("a name that is not UTF-8 is shown as it can be")
    found, corpus, _ = read(notes)
    assert len(found) == 5
    assert kinds(corpus) == {
        "notes/binary.txt": "binary file",
        "notes/empty.md": "empty text",
        "notes/large.txt": "file too large",
        "notes/latin.txt": "not UTF-8",
        "notes/odd.html": "unknown encoding",
    }
    with pytest.raises(UserError, match=r"notes/binary\.txt: binary file"):
        read(notes, strict=True)


def test_without_permission(notes, monkeypatch):
    scandir, opened = os.scandir, Path.open

    def forbidden_folder(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def forbidden_file(path, *args, **options):
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "scandir", forbidden_folder)
    monkeypatch.setattr(Path, "open", forbidden_file)
    found, corpus, _ = read(notes)
    assert list(found) == ["notes/b.md"]
    assert [str(problem) for problem in corpus.problems.first] == [
        "notes/a.txt: cannot be read (Permission denied)",
        "notes/sub: cannot be read (Permission denied)",
    ]
    with pytest.raises(UserError, match=r"cannot read '.*sub': Permission denied"):
        read(notes / "sub")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "is an empty folder"),
        ([".git/x.txt"], "is an empty folder"),
        (["a.csv", "b.csv", "c"], r"holds no .* file, only 2 \.csv, 1 without ending; give tables by their names"),
        (["a.txt"], r"holds no document \(all 1 rows were skipped, the first as empty/a\.txt: empty text\)"),
    ],
)
def test_a_folder_with_nothing_to_read(tmp_path, files, said):
    folder = tmp_path / "empty"
    for name in ["x", *files]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).write_text("")
    with pytest.raises(UserError, match=said), Corpus(folder) as corpus:
        corpus.require_some()


def test_every_kind_of_file_on_demand(notes):
    found, _, _ = read(notes, format="text")
    assert {"notes/photo.png", "notes/table.csv"} < set(found)
    with pytest.raises(UserError, match=r"is a folder, and not of format csv; name its files, such as '.*/\*\.csv'"):
        read(notes, format="csv")


def test_a_pattern_of_tables(notes):
    (notes / "table.csv").write_text("id,text\n1,a\n")
    assert set(read(f"{notes}/*")[0]) == {"1", "notes/a.txt", "notes/b.md"}


def test_changes_in_a_folder(notes, encoder, home):
    index_corpus(notes, name="n", encoder=encoder, home=home)
    (notes / "a.txt").unlink()
    (notes / "b.md").write_text("# A heading\n\nNew.\n")
    (notes / "sub" / "c.rst").write_bytes(b"\xff")
    report = index_corpus(notes, name="n", encoder=encoder, home=home, prune=True)
    # c.rst cannot be read any more, but it is known to be there.
    assert (report.changed, report.unchanged, report.removed, report.documents) == (1, 1, 1, 3)
    assert (report.skipped, report.prune_withheld) == (1, False)


def test_prune_looks_at_all_sources(notes, tmp_path, encoder, home):
    table = tmp_path / "t.csv"
    table.write_text("id,text\n1,a\n2,b\nnotes/b.md,a second one\n")
    first = index_corpus(Corpus(notes, table), name="n", encoder=encoder, home=home)
    assert (first.added, first.problem_counts) == (6, {"duplicate id": 1})
    assert str(first.problems[0]) == f"{table}, line 4: duplicate id ('notes/b.md')"
    (notes / "a.txt").unlink()
    table.write_text("id,text\n2,b\n")
    again = index_corpus(Corpus(notes, table), name="n", encoder=encoder, home=home, prune=True)
    assert (again.removed, again.unchanged, again.documents) == (2, 4, 4)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("text\n\n## Sub *x* ##\n", "Sub *x*"),
        ("```sh\n# comment\n```\n# Real\n", "Real"),
        ("~~~~\n~~~\n# comment\n~~~~\n# Real\n", "Real"),
        ("---\n# comment\ntags: x\n---\n# Real\n", "Real"),
        ("Underlined\n===\n# Later", "Underlined"),
        ("- item\n---\n# Real", "Real"),
        ("#hashtag\n\n    # code\n", ""),
        ("", ""),
    ],
)
def test_markdown_title(text, title):
    assert markdown_title(text) == title


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("=====\n Over\n=====\n", "Over"),
        (".. comment\n\nTitle\n-----\n", "Title"),
        ("Too long\n--\n\nNext\n~~~~\n", "Next"),
        ("no heading", ""),
    ],
)
def test_rst_title(text, title):
    assert rst_title(text) == title


def test_html():
    page = """<!doctype html><html><head><title> A &amp;
    B </title><style>p {}</style><script>if (a < b) {"</p>"}</script></head>
    <body><svg><title>no</title></svg><h1>Head</h1><p>One&nbsp;<i>two</i>three<br>four   five
    <ul><li>x<li>y</ul><pre>  keep
      this</pre><noscript>no</noscript><!-- no --><table><tr><td>1<td>2</table></body></html>"""
    title, text = html.title_and_text(page)
    assert title == "A & B"
    assert text.split("\n") == ["Head", "One twothree", "four five", "x", "y", "  keep", "      this", "1", "2"]
    assert html.title_and_text("<h1>First <b>one</b><p>text<h1>Second</h1>") == ("First one", "First one\ntext\nSecond")
    assert html.title_and_text("")[1] == html.title_and_text("<script>x")[1] == ""


def test_html_in_another_encoding(tmp_path):
    for name, content in {
        "a.html": '<meta charset="windows-1251"><p>привет'.encode("cp1251"),
        "b.html": '<meta http-equiv="Content-Type" content="text/html; charset=ISO-8859-1"><p>“é”'.encode("cp1252"),
        "c.html": "\ufeff<p>é".encode("utf-16-le"),
        "d.html": "<p>é".encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
    assert [d.text for d in read(tmp_path)[0].values()] == ["привет", "“é”", "é", "é"]


@pytest.mark.parametrize("tag", ["<", "<a ", "<a x='", "<!--", "</", "&", "<div>", "<b>", "<table><tr><td>", "<svg>"])
def test_malformed_pages_take_time_in_proportion(tag):
    html.title_and_text(tag * 200_000)


def test_pdf(tmp_path):
    pytest.importorskip("pypdf")
    (tmp_path / "a.pdf").write_bytes(_pdf("Hello from a page"))
    (tmp_path / "b.pdf").write_bytes(_pdf("Hello")[:200])
    (tmp_path / "c.pdf").write_bytes(_pdf(""))
    found, corpus, _ = read(tmp_path)
    (document,) = found.values()
    assert (document.title, document.text) == ("a", "Hello from a page")
    assert list(kinds(corpus).values()) == ["damaged PDF", "PDF without text"]


def _pdf(text: str) -> bytes:
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    file, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return file + b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(file),
    )


def test_pdf_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files.pdf, "can_read", lambda: False)
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError, match=r"only 1 \.pdf; for PDF: pip install 'epic-search\[pdf\]'"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"a\.pdf holds no .*pip install"):
        read(tmp_path / "a.pdf")
