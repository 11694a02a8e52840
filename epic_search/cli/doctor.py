"""`epic-search doctor`: what this machine is, what was chosen on it and why, and what is wrong with it."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from epic_search import __version__
from epic_search.cli import console, options, settings
from epic_search.cli.completion import complete_encoder
from epic_search.errors import UserError

if TYPE_CHECKING:
    import torch

    from epic_search.encoder.device import Device, Dtype

EXIT_PROBLEMS = 1
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM")
ROOM_BYTES = 2**30  # less free space than this deserves a word: an index of 100,000 passages takes about that


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `hint`: what to do about it, for all but "ok"; only a "problem" makes the exit code 1."""

    name: str
    value: str
    reason: str = ""
    state: Literal["ok", "note", "problem"] = "ok"
    hint: str = ""


def doctor(
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            envvar="EPIC_SEARCH_ENCODER",
            help="The encoder to try. Default: epic-mini.",
            show_default=False,
            autocompletion=complete_encoder,
        ),
    ] = None,
    home: options.Home = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Say what this machine is, what was chosen on it and why, and what is wrong.

    Nothing is fetched and nothing is changed. Exit code 1 when there is a
    problem; each comes with a hint.
    """
    from epic_search.encoder.checkpoint import DEFAULT_MODEL
    from epic_search.index import home as default_home

    # Read when huggingface_hub is imported: what is not on this machine is reported, not fetched.
    os.environ["HF_HUB_OFFLINE"] = "1"
    reference = encoder or DEFAULT_MODEL
    looks: list[Callable[[], Iterator[Finding]]] = [
        _software,
        _machine,
        _terminal,
        lambda: _home(home or default_home()),
        _cache,
        _extras,
        lambda: _torch(device),
        lambda: _encoder(reference, device=device, dtype=dtype),
    ]
    found = []
    for look in looks:
        for finding in look():
            found.append(finding)
            if not json:
                _print(finding)
    problems = [finding for finding in found if finding.state == "problem"]
    if json:
        console.print_json({"ok": not problems, "findings": [asdict(finding) for finding in found]})
    else:
        count = len(problems)
        console.note(f"{count} problem{'s' if count > 1 else ''}" if problems else "no problem found")
    if problems:
        raise typer.Exit(EXIT_PROBLEMS)


def _print(finding: Finding) -> None:
    value = f"{finding.value} ({finding.reason})" if finding.reason else finding.value
    mark = "" if finding.state == "ok" else f"{finding.state}: "
    console.print_fields([(finding.name, mark + value)], width=22)
    if finding.hint:
        console.print_fields([("", f"-> {finding.hint}")], width=22)
    sys.stdout.flush()


def _software() -> Iterator[Finding]:
    from importlib.metadata import version

    yield Finding("epic-search", __version__, str(Path(__file__).parent.parent))
    yield Finding("python", platform.python_version(), sys.executable)
    yield Finding("qdrant engine", f"qdrant-edge-py {version('qdrant-edge-py')}", "embedded")
    try:
        file = settings.config_file()
        yield Finding(
            "configuration", str(file) if file else "none", "" if file else f"would be {settings.user_file()}"
        )
    except UserError as error:
        yield Finding("configuration", str(error), state="problem", hint="epic-search config path")


def _machine() -> Iterator[Finding]:
    yield Finding("machine", f"{platform.system()} {platform.machine()}, {_cores()} cores")
    for name in THREADS:
        if value := os.environ.get(name):
            yield Finding(name, value)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _terminal() -> Iterator[Finding]:
    encoding = (sys.stdout.encoding or "none").lower()
    width = shutil.get_terminal_size().columns
    if encoding.replace("-", "") == "utf8":
        yield Finding("terminal", f"{width} columns, {encoding}")
    else:
        yield Finding(
            "terminal",
            f"{width} columns, {encoding}",
            "characters that this encoding lacks are printed as ?",
            state="note",
            hint="set a UTF-8 locale, such as LANG=C.UTF-8",
        )


def _home(folder: Path) -> Iterator[Finding]:
    yield from _folder("home of indexes", folder, "EPIC_SEARCH_HOME or --home names another")
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return
    from epic_search.index import list_indexes

    found = list_indexes(folder)
    yield Finding("indexes", f"{len(found)}", ", ".join(f"{info.name} {info.status}" for info in found))
    for info in found:
        if info.problem:
            yield Finding(
                f"index {info.name}", "unreadable", info.problem, "problem", f"epic-search indexes verify {info.name}"
            )


def _cache() -> Iterator[Finding]:
    from epic_search.encoder.weights import cache_home

    yield from _folder("cache", cache_home(), "EPIC_SEARCH_CACHE names another")


def _folder(name: str, folder: Path, hint: str) -> Iterator[Finding]:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding(name, str(folder), f"{there} cannot be written to", "problem", hint)
        return
    free = shutil.disk_usage(there).free
    room = f"{console.size_text(free)} free{'' if there == folder.absolute() else ', not there yet'}"
    if free < ROOM_BYTES:
        yield Finding(name, str(folder), room, "note", f"free some space; {hint}")
    else:
        yield Finding(name, str(folder), room)


def _extras() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, metadata, version

    from packaging.requirements import Requirement

    try:
        about = metadata("epic-search")
    except PackageNotFoundError:
        yield Finding("extras", "not known", "epic-search runs from a folder that was not installed")
        return
    requirements = [Requirement(line) for line in about.get_all("Requires-Dist") or []]
    for extra in about.get_all("Provides-Extra") or []:
        missing = []
        for requirement in requirements:
            if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
                continue
            try:
                version(requirement.name)
            except PackageNotFoundError:
                missing.append(requirement.name)
        if missing:
            hint = f"pip install 'epic-search[{extra}]' if you want it"
            yield Finding(f"extra {extra}", "not installed", f"missing {', '.join(missing)}", "note", hint)
        else:
            yield Finding(f"extra {extra}", "installed")


def _torch(device: "Device") -> Iterator[Finding]:
    with console.working("loading torch"):
        import torch

        from epic_search.encoder.device import choose_device
    threads, cores = torch.get_num_threads(), _cores()
    if threads == cores:
        yield Finding("torch", torch.__version__, f"{threads} threads")
    else:
        why = f"{threads} threads on {cores} cores" + (", which wait for each other" if threads > cores else "")
        yield Finding("torch", torch.__version__, why, "note", f"OMP_NUM_THREADS={cores} would use all cores")
    try:
        chosen = choose_device(device)
    except UserError as error:
        yield Finding("device", device, str(error), "problem", "leave out --device, or unset EPIC_SEARCH_DEVICE")
        return
    if chosen.type == "cuda":
        reason = torch.cuda.get_device_name(chosen)
    elif torch.cuda.is_available():
        reason = "asked for"
    else:
        reason = "torch sees no GPU" if torch.version.cuda else "this is torch's build without CUDA"
    yield Finding("device", chosen.type, reason)


def _encoder(reference: str, *, device: "Device", dtype: "Dtype") -> Iterator[Finding]:
    with console.working(f"loading the encoder {reference}"):
        from epic_search.encoder import Encoder
        from epic_search.encoder.attention import PACKED
        from epic_search.encoder.backbone import choose_layout
        from epic_search.encoder.device import choose_dtype

        try:
            start = time.monotonic()
            loaded = Encoder.load(reference, device=device, dtype=dtype)
            loading = time.monotonic() - start
            loaded.encode_queries(["what does this machine do"])
            start = time.monotonic()
            loaded.encode_queries(["how fast is this machine"])
            query = time.monotonic() - start
        except UserError as error:
            yield Finding("encoder", reference, str(error), "problem", "epic-search models list")
            return
    precision = choose_dtype(dtype, loaded.device)
    layout = choose_layout(loaded.model.backbone, device=loaded.device)
    yield Finding("encoder", reference, f"loaded in {loading:.1f} s, a query in {1000 * query:.0f} ms")
    yield Finding("dtype", precision.value, precision.reason)
    yield Finding("attention", layout.value, layout.reason)
    if layout.value == PACKED:
        yield _passes(loaded.device)


def _passes(device: "torch.device") -> Finding:
    from epic_search.encoder.passes import passes_choice

    choice, is_missed = passes_choice(device)
    hint = "install g++: large batches then take about three quarters of the time" if is_missed else ""
    return Finding("element-wise passes", choice.value, choice.reason, "note" if is_missed else "ok", hint)
