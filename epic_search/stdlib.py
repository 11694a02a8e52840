"""The installed Python standard library as text: real passages and training pairs without a download.

Modules written in Python are parsed, never imported. Those written in C have their text only in the running
interpreter, so a fixed list of them, all without side effects, is imported and inspected.
"""

import ast
import importlib
import inspect
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

Kind = Literal["module", "class", "function", "method"]

_WORDS = str.split  # word lists read better as text than as one string a line

WELL_KNOWN = _WORDS(
    "builtins os pathlib csv json re datetime collections itertools functools subprocess shutil urllib"
    " http sqlite3 asyncio threading logging argparse string math random time sys io tempfile glob zipfile"
    " tarfile gzip hashlib base64 pickle copy typing dataclasses enum contextlib concurrent"
    " multiprocessing queue socket ssl email html xml unittest statistics decimal fractions heapq bisect"
    " operator struct textwrap difflib configparser tomllib uuid secrets getpass platform signal warnings"
    " traceback inspect abc types weakref array calendar zoneinfo locale fnmatch shlex pprint timeit"
    " select selectors smtplib ftplib zlib bz2 lzma mmap ipaddress binascii"
)
"""Top-level modules that come first, in this order."""

_METHODS_EARLY = frozenset(_WORDS("builtins pathlib datetime collections csv json re"))
"""Modules whose methods (str.split, Path.glob) are as well known as other modules' functions."""

_LAST = frozenset(
    _WORDS("distutils encodings asynchat asyncore imp smtpd tkinter turtle nntplib telnetlib pipes pydoc")
)
_SKIPPED = frozenset(
    _WORDS(
        "test tests idle_test idlelib turtledemo lib2to3 site-packages dist-packages ensurepip pydoc_data"
        " lib-dynload __pycache__ antigravity this ntpath nturl2path sre_compile sre_constants sre_parse"
    )
)
_ALIASES = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "genericpath": "os.path",
    "posixpath": "os.path",
}
"""Files that hold what users import under another name."""

_WRITTEN_IN_C = {
    name: name
    for name in _WORDS(
        "array atexit binascii builtins cmath errno faulthandler fcntl gc grp itertools marshal math mmap pwd"
        " resource select sys syslog termios time unicodedata zlib"
    )
}
_WRITTEN_IN_C |= {
    name: f"_{name}"
    for name in _WORDS(
        "bisect bz2 collections contextvars csv functools heapq io lzma operator queue random signal socket"
        " sqlite3 ssl struct tracemalloc weakref"
    )
}
_WRITTEN_IN_C |= {"os": "posix"}
"""Public module -> the C module that holds (part of) it. Importing any of these only defines names."""

_SHORT_SOURCE = 25  # lines; longer functions say too many things to be one passage
_SIGNATURE_WIDTH = 240  # characters
_COMMENTS_WIDTH = 400  # characters


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented thing of the standard library."""

    module: str
    """Where users import it from, such as "os.path"."""
    qualname: str
    """Its name inside the module, such as "PurePath.match"; empty for the module itself."""
    kind: Kind
    signature: str
    """The full name with its parameters, such as "csv.DictReader(f, fieldnames=None)"."""
    docstring: str
    source: str | None = None
    """The code without its docstring, for short functions and methods written in Python."""

    @property
    def name(self) -> str:
        return f"{self.module}.{self.qualname}" if self.qualname else self.module


def entries() -> Iterator[Entry]:
    """Every public, documented module, class, function and method, well-known ones first, in a stable order.

    A class without a docstring is described by its members and comments, and says so; other things without
    one are left out.
    """
    tiers: tuple[list[str], list[str], list[str]] = ([], [], [])
    files = _files()
    for top in sorted({*files, *(module.split(".")[0] for module in _WRITTEN_IN_C)}):
        tiers[0 if top in WELL_KNOWN else 2 if top in _LAST else 1].append(top)
    tiers[0].sort(key=WELL_KNOWN.index)
    seen: set[str] = set()
    for tier in tiers:
        found = [entry for top in tier for entry in _entries_of(top, files.get(top, []))]
        for entry in sorted(found, key=_lateness):  # a stable sort: the order of tier and file stays
            if entry.name not in seen:
                seen.add(entry.name)
                yield entry


def documents(limit: int | None = None) -> Iterator[dict[str, str]]:
    """The entries as documents to index: _id, title (signature), text (docstring), module and kind."""
    for entry in islice(entries(), limit):
        yield {
            "_id": entry.name,
            "title": entry.signature,
            "text": entry.docstring,
            "module": entry.module,
            "kind": entry.kind,
        }


def pairs() -> Iterator[tuple[str, str]]:
    """(query, positive) for training: what something does, and the rest of what is written about it.

    The query is the docstring's first sentence; the positive is the signature with the rest of the docstring
    or, where there is no rest, with the source. No query and no positive comes twice.
    """
    queries: set[str] = set()
    positives: set[str] = set()
    for entry in entries():
        query, rest = _split_summary(entry)
        body = rest or entry.source or ""
        positive = f"{entry.signature}\n{body}".strip()
        if len(query.split()) < 3 or not (body or "(" in entry.signature):
            continue
        if query.lower() not in queries and positive not in positives:
            queries.add(query.lower())
            positives.add(positive)
            yield query, positive


def _lateness(entry: Entry) -> bool:
    return entry.kind == "method" and entry.module.split(".")[0] not in _METHODS_EARLY


@dataclass(frozen=True, slots=True)
class _Source:
    """One parsed file. Its module is what users import, or a private one that re-exports make public."""

    module: str
    tree: ast.Module
    lines: list[str]
    is_package: bool


def _files() -> dict[str, list[tuple[str, Path]]]:
    """Top-level module -> the (module, file) pairs that make it, in name order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(library.iterdir()):
        if path.stem in _SKIPPED or path.name in _SKIPPED:
            continue
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.suffix == ".py" else []
        for file in files:
            parts = file.relative_to(library).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            module = _ALIASES.get(name, name)
            codec = parts[0] == "encodings" and len(parts) > 1  # a hundred tables with one sentence each
            if not _SKIPPED.intersection(parts) and not codec and parts[0].isidentifier():
                found.setdefault(module.split(".")[0], []).append((module, file))
    return {top: files for top, files in found.items() if not top.startswith("_")}


def _entries_of(top: str, files: Iterable[tuple[str, Path]]) -> Iterator[Entry]:
    """What one top-level module and its submodules define; the longer text where C and Python both do."""
    sources = [_parse(module, file) for module, file in files]
    by_module = {source.module: source for source in sources}
    exports: dict[tuple[str, str], str] = {}
    for source in sources:
        if source.is_package:
            exports |= _reexports(source, by_module)
    in_c = list(_entries_in_c(top, _WRITTEN_IN_C[top])) if top in _WRITTEN_IN_C else []
    lengths = {entry.name: len(entry.docstring) for entry in in_c}
    for source in sources:
        for entry in _entries_in_python(source, exports):
            if len(entry.docstring) >= lengths.get(entry.name, 0):
                yield entry
    yield from in_c


def _parse(module: str, file: Path) -> _Source:
    text = file.read_text(encoding="utf-8", errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # the library's own invalid escapes
        tree = ast.parse(text)
    return _Source(module, tree, text.splitlines(), file.name == "__init__.py")


def _reexports(package: _Source, by_module: dict[str, _Source]) -> dict[tuple[str, str], str]:
    """(module, name) -> the package that offers the name, for what its __init__ imports from its modules."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.walk(package.tree):
        if not isinstance(node, ast.ImportFrom) or node.level > 1:
            continue
        origin = f"{package.module}.{node.module}" if node.level else node.module or ""
        if origin not in by_module or not origin.startswith(f"{package.module}."):
            continue
        for alias in node.names:
            names = _offered(by_module[origin].tree) if alias.name == "*" else [alias.name]
            found |= {(origin, name): package.module for name in names if alias.asname in (None, name)}
    return found


def _offered(tree: ast.Module) -> list[str]:
    """The names that `import *` takes: __all__ where it is written out, else every public definition."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets):
            with suppress(ValueError):
                return list(ast.literal_eval(node.value))
    return [node.name for node in _definitions(tree.body) if not node.name.startswith("_")]


_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(body: Iterable[ast.stmt]) -> Iterator[_Definition]:
    """Classes and functions of a body, also those inside `if` and `try`, as for other platforms."""
    for node in body:
        if isinstance(node, _Definition):
            yield node
        elif isinstance(node, ast.If):
            yield from _definitions([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _definitions([*node.body, *(s for h in node.handlers for s in h.body), *node.orelse])


def _entries_in_python(source: _Source, exports: dict[tuple[str, str], str]) -> Iterator[Entry]:
    private = any(part.startswith("_") for part in source.module.split("."))
    about = _docstring(source.tree)
    if about and not private:
        yield Entry(source.module, "", "module", source.module, about)
    for node in _definitions(source.tree.body):
        home = exports.get((source.module, node.name))
        if node.name.startswith("_") or (private and home is None):
            continue
        module = home or source.module
        if isinstance(node, ast.ClassDef):
            yield from _class_entries(node, module, source, _first_sentence(about))
        elif docstring := _docstring(node):
            parameters = _parameters(node)
            signature = f"{module}.{node.name}"
            if not parameters.startswith("self"):  # a decorator makes typing.Optional and its like from these
                signature += f"({parameters})"
            yield Entry(module, node.name, "function", signature, docstring, _code(node, source.lines))


def _class_entries(node: ast.ClassDef, module: str, source: _Source, about: str) -> Iterator[Entry]:
    members: dict[str, _Definition] = {}
    for member in _definitions(node.body):
        members.setdefault(member.name, member)  # the first of a property and its setter
    start = members.get("__init__")
    signature = f"{module}.{node.name}"
    if start is not None and not isinstance(start, ast.ClassDef):
        signature += f"({_parameters(start, bound=True)})"
    parts = [_docstring(node), _docstring(start) if start else ""]
    docstring = "\n\n".join(part for part in parts if part)
    public = [member for member in members.values() if not member.name.startswith("_")]
    if not docstring:
        docstring = _described(node, module, source, public, about)
    yield Entry(module, node.name, "class", signature, docstring)
    for member in public:
        text = _docstring(member)
        decorators = {ast.unparse(decorator).split(".")[-1] for decorator in member.decorator_list}
        if not text or isinstance(member, ast.ClassDef):
            continue
        qualname = f"{node.name}.{member.name}"
        signature = f"{module}.{qualname}"
        if not {"property", "cached_property"} & decorators:
            signature += f"({_parameters(member, bound='staticmethod' not in decorators)})"
        yield Entry(module, qualname, "method", signature, text, _code(member, source.lines))


def _described(node: ast.ClassDef, module: str, source: _Source, members: list[_Definition], about: str) -> str:
    """What the source says about a class that has no docstring, labelled as such."""
    said = [f"Class of the module {module}" + (f": {about.rstrip('.')}." if about else ".")]
    if names := [base for base in map(ast.unparse, node.bases) if base != "object"]:
        said.append(f"A kind of {', '.join(names)}.")
    if members:
        texts = ((member.name, _first_sentence(_docstring(member))) for member in members)
        said.append("Members: " + "; ".join(f"{name} ({text})" if text else name for name, text in texts) + ".")
    if comments := _comments(node, source.lines):
        said.append(f"Comments in its code: {comments}")
    return "\n".join([*said, "(This class has no docstring.)"])


def _comments(node: ast.ClassDef, lines: list[str]) -> str:
    """The whole-line comments above and inside a class, as running text."""
    first = node.lineno - 1 - len(node.decorator_list)
    above = first
    while above > 0 and lines[above - 1].startswith("#"):
        above -= 1
    stripped = (line.strip() for line in lines[above : node.end_lineno])
    words = (line.lstrip("# ") for line in stripped if line.startswith("#"))
    kept = " ".join(text for text in words if re.search(r"[a-z]{2}", text) and not re.match("XXX|FIXME|TODO", text))
    return textwrap.shorten(kept, _COMMENTS_WIDTH, placeholder=" ...")


def _docstring(node: ast.Module | _Definition) -> str:
    """The docstring as a reader wants it: no leading "name.py - ", no indentation."""
    text = (ast.get_docstring(node) or "").strip()
    return re.sub(r"\A[\w.]+\.py\s*-+\s*", "", text)


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool = False) -> str:
    """The parameters as written; of a bound method without self or cls."""
    written = ast.unparse(node.args)
    if bound:
        written = re.sub(r"\A\w+(?:, /(?=,|\Z))?(?:, )?", "", written)
    return textwrap.shorten(written, _SIGNATURE_WIDTH, placeholder=" ...")


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str | None:
    """A short function's statements after its docstring."""
    body = node.body[1:]
    if not body or node.end_lineno is None or node.end_lineno - body[0].lineno >= _SHORT_SOURCE:
        return None
    return textwrap.dedent("\n".join(lines[body[0].lineno - 1 : node.end_lineno])).strip() or None


def _entries_in_c(module: str, written_in: str) -> Iterator[Entry]:
    """What the C module `written_in` defines for the public `module`; nothing where this Python lacks it."""
    try:
        loaded = importlib.import_module(written_in)
    except ImportError:  # posix on Windows, for one
        return
    if about := inspect.cleandoc(loaded.__doc__ or ""):
        yield Entry(module, "", "module", module, about)
    for name, value in sorted(vars(loaded).items(), key=lambda item: (_is_exception(item[1]), item[0])):
        if name.startswith("_") or not (isinstance(value, type) or inspect.isbuiltin(value)):
            continue
        if _is_exception(value) and value.__name__ != name:  # an old name of another one, such as IOError
            continue
        kind: Kind = "class" if isinstance(value, type) else "function"
        if entry := _entry_in_c(module, name, kind, value):
            yield entry
        if isinstance(value, type):
            for member, method in sorted(vars(value).items()):
                if not member.startswith("_") and (entry := _entry_in_c(module, f"{name}.{member}", "method", method)):
                    yield entry


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _entry_in_c(module: str, qualname: str, kind: Kind, value: object) -> Entry | None:
    docstring = inspect.cleandoc(getattr(value, "__doc__", None) or "").strip()
    if not docstring:
        return None
    signature = f"{module}.{qualname}"
    told = re.match(rf"(?:\w+\.)?{re.escape(qualname.split('.')[-1])}(\(.*?\))(?=\s|$)", docstring)
    if parameters := getattr(value, "__text_signature__", None):
        signature += re.sub(r"\(\$\w+(?:, /)?(?:, )?", "(", parameters).replace("<unrepresentable>", "...")
    elif told:
        signature += told[1]
    return Entry(module, qualname, kind, signature, docstring)


def _split_summary(entry: Entry) -> tuple[str, str]:
    """A docstring's first sentence and the rest, without the usage lines that C docstrings begin with."""
    text = entry.docstring
    if entry.kind != "module":
        short = re.escape(entry.qualname.split(".")[-1])
        text = re.sub(rf"\A(?:(?:\w+\.)?{short}\(.*\n?)+", "", text).lstrip()
    summary = _first_sentence(text)
    pattern = r"\s+".join(map(re.escape, summary.split()))
    return summary, re.sub(rf"\A{pattern}", "", text).strip()


def _first_sentence(text: str) -> str:
    paragraph = " ".join(re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0].split())
    return re.split(r"(?<=[a-z)\]'\"`][.!?])\s+(?=[A-Z`'\"(])", paragraph, maxsplit=1)[0]
