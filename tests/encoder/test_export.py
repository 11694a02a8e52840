"""Exports: each form opens by itself and gives the encoder's vectors, and nothing that was there is lost."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.checkpoint import find
from epic_search.encoder.config import EncoderConfig
from epic_search.encoder.export import export
from epic_search.encoder.hub import push
from epic_search.errors import UserError

TEXTS = ["cats", "", ": a  b \n", "naïve <eos> text <bos>", "long " * 40, "Response:"]
PAIRS = [("a query", "its passage"), ("b", "c")]
LEAST = 0.9999


@pytest.fixture(scope="module")
def plain_folder(tiny_config: EncoderConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained encoder without a Contextual token, pooled at the last token."""
    return _trained(tiny_config, tmp_path_factory.mktemp("plain") / "encoder", pooling="last")


def _trained(config: EncoderConfig, folder: Path, *, pooling: str) -> Path:
    torch.manual_seed(3)
    changed = config.model_copy(update={"name": "plain", "pooling": pooling, "contextual": None})
    encoder = Encoder.create(changed, device="cpu")
    for name, parameter in encoder.model.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    encoder.save(folder)
    return folder


def _vectors(encoder: Encoder) -> dict[str, np.ndarray]:
    pairs = [Demonstration(query, passage) for query, passage in PAIRS]
    return {
        "passages": encoder.encode_passages(TEXTS),
        "queries": encoder.encode_queries(TEXTS),
        "prompted": encoder.encode_queries(TEXTS, prompt=encoder.prompt(task="Find it", demonstrations=pairs)),
    }


def _agree(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, vectors in found.items():
        np.testing.assert_array_less(LEAST, (vectors * expected[name]).sum(axis=1), err_msg=name)


def test_merged_opens_without_the_weights_it_was_made_from(
    tiny_config: EncoderConfig, tiny_encoder_folder: Path, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    backbone = shutil.copytree(tiny_config.backbone, tmp_path / "backbone")
    contextual = shutil.copytree(tiny_config.contextual.encoder, tmp_path / "contextual")
    source = shutil.copytree(tiny_encoder_folder, tmp_path / "source")
    fields = json.loads((source / "encoder.json").read_text())
    fields["backbone"], fields["contextual"]["encoder"] = str(backbone), str(contextual)
    (source / "encoder.json").write_text(json.dumps(fields))
    made = export(source, out=tmp_path / "made" / "merged", format="merged")
    assert made.source == tiny_encoder.fingerprint

    moved = shutil.move(made.folder, tmp_path / "elsewhere")
    for folder in (source, backbone, contextual):
        shutil.rmtree(folder)
    loaded = Encoder.load(moved, device="cpu", dtype="float32")
    _agree(_vectors(loaded), _vectors(tiny_encoder))
    assert loaded.fingerprint == made.fingerprint != made.source, "other weights, another encoder"
    assert loaded.model.backbone.config.num_hidden_layers == 2, "only the layers that are used"
    assert str(tmp_path) not in "".join(file.read_text() for file in moved.rglob("*.json"))
    assert {file.stat().st_mode for file in moved.rglob("*") if file.is_file()} == {
        (moved / "encoder.json").stat().st_mode
    }


def test_training_starts_from_a_merged_export(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    merged = export(tiny_encoder_folder, out=tmp_path / "merged", format="merged").folder
    found = find(str(merged))
    assert found.config.backbone == str(merged / "backbone")
    Encoder.create(found.config, start=found.folder, device="cpu").save(tmp_path / "trained")
    before, after = (Encoder.load(folder, device="cpu", dtype="float32") for folder in (merged, tmp_path / "trained"))
    _agree(_vectors(after), _vectors(before))


def test_adapter_is_the_same_encoder(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_encoder_folder, tmp_path / "source")
    (tmp_path / "source" / "optimizer.safetensors").write_bytes(b"not a part of the encoder")
    made = export(tiny_encoder_folder, out=tmp_path / "adapter", format="adapter")
    assert made.fingerprint == made.source == find(str(tiny_encoder_folder)).fingerprint()
    assert {file.name for file in made.folder.iterdir()} == {
        "README.md",
        "encoder.json",
        "export.json",
        "lora",
        "projectors.safetensors",
    }


def test_a_plain_encoder_needs_sentence_transformers_alone(plain_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    made = export(plain_folder, out=tmp_path / "st", format="sentence-transformers")
    np.save(tmp_path / "texts.npy", np.array(TEXTS, dtype=np.str_))
    script = (
        "import sys, numpy as np\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer('st', device='cpu')\n"
        "texts = np.load('texts.npy').tolist()\n"
        "np.savez('found.npz', queries=model.encode_query(texts), passages=model.encode_document(texts))\n"
        "assert not any(name.startswith('epic_search') for name in sys.modules)\n"
    )
    (tmp_path / "load.py").write_text(script)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "load.py"], cwd=tmp_path, check=True, env=environment)
    expected = _vectors(Encoder.load(plain_folder, device="cpu", dtype="float32"))
    _agree(dict(np.load(tmp_path / "found.npz")), expected)
    assert made.fingerprint is None
    assert "With sentence-transformers alone" in (made.folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["contextual", "mean", "text demonstrations"])
def test_other_encoders_bring_their_module(
    kind: str, tiny_config: EncoderConfig, tiny_encoder_folder: Path, tiny_text_folder: Path, tmp_path: Path
) -> None:
    st = pytest.importorskip("sentence_transformers")
    folder = tiny_text_folder if kind == "text demonstrations" else tiny_encoder_folder
    if kind == "mean":
        folder = _trained(tiny_config, tmp_path / "mean", pooling="mean")
    made = export(folder, out=tmp_path / "st", format="sentence-transformers")
    original = Encoder.load(folder, device="cpu", dtype="float32")
    expected = _vectors(original)
    model = st.SentenceTransformer(str(made.folder), trust_remote_code=True, device="cpu")

    def found(model: object) -> dict[str, np.ndarray]:
        return {
            "passages": model.encode_document(TEXTS, batch_size=2),
            "queries": model.encode_query(TEXTS, batch_size=2),
            "prompted": model.encode_query(TEXTS, prompt="Find it", demonstrations=PAIRS),
        }

    _agree(found(model), expected)
    as_template = model.encode(TEXTS, prompt="Instruct: Find it\nQuery: ", demonstrations=PAIRS)
    _agree({"queries": model.encode(TEXTS, prompt_name="query"), "passages": model.encode(TEXTS)}, expected)
    _agree({"prompted": as_template}, expected)
    assert model.get_embedding_dimension() == original.dim and model.max_seq_length == original.config.max_length
    with pytest.raises(UserError, match="documents are encoded without prompt"):
        model.encode_document(TEXTS, prompt="Find it")
    with pytest.raises(UserError, match="not a string"):
        model.encode_query([("a", "pair")])

    model.save_pretrained(str(tmp_path / "again"), create_model_card=False)
    again = st.SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    _agree(found(again), expected)
    _agree(_vectors(Encoder.load(tmp_path / "again", device="cpu", dtype="float32")), expected)


def test_a_language_model_whose_positions_end_with_its_texts(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    made = export(tiny_backbone_folder, out=tmp_path / "st", format="sentence-transformers")
    assert made.name == "llama"
    assert str(tiny_backbone_folder.parent) not in "".join(
        file.read_text() for pattern in ("*.json", "README.md") for file in made.folder.glob(pattern)
    )
    texts = [*TEXTS, "long " * 200]
    expected = Encoder.load(tiny_backbone_folder, device="cpu", dtype="float32").encode_passages(texts)
    model = st.SentenceTransformer(str(made.folder), trust_remote_code=True, device="cpu")
    _agree({"passages": model.encode_document(texts)}, {"passages": expected})


def test_the_module_travels_to_other_processes(
    tiny_encoder_folder: Path, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    import copy

    from epic_search.encoder.sentence_transformers import EpicSearch

    module = EpicSearch.load(str(tiny_encoder_folder), model_kwargs={"dtype": torch.bfloat16})
    copied = copy.deepcopy(module)
    assert copied.encoder.fingerprint == tiny_encoder.fingerprint and copied.encoder.dtype == torch.bfloat16
    with pytest.raises(UserError, match="float16"):
        EpicSearch.load(str(tiny_encoder_folder), model_kwargs={"dtype": "float16"})


def test_the_card_carries_what_is_known(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    source = shutil.copytree(tiny_encoder_folder, run / "encoder")
    recipe = {
        "name": "tiny",
        "data": {"pairs": [{"files": "/home/someone/pairs.jsonl"}, {"dataset": "org/set"}, {"builtin": "x"}]},
    }
    (run / "recipe.json").write_text(json.dumps(recipe))
    (run / "log.jsonl").write_text('{"step": 2, "steps": 2, "loss": 0.5, "seconds": 90}\n')
    card = _card(export(source, out=tmp_path / "a", format="adapter").folder)
    assert card.startswith("---\n") and "\nlibrary_name: epic-search\n" in card
    for heading in ("How to load it", "Parts and licences", "Intended use", "Training data", "Recipe", "Results"):
        assert f"\n## {heading}\n" in card
    assert "Training loss 0.500 at step 2 of 2, after 1.5 minutes" in card
    assert "| org/set | see https://huggingface.co/datasets/org/set |" in card and "PSF-2.0" in card
    assert "pairs.jsonl" in card and "/home/someone" not in card and str(tmp_path) not in card

    (source / "README.md").write_text(
        "---\nlicense: cc-by-4.0\ntags: [mine]\n---\n# tiny\n\nMy words.\n\n## Data\n\n```\n# no heading\n```\n"
    )
    merged = export(source, out=tmp_path / "b", format="merged").folder
    card = _card(merged)
    assert "\nlicense: cc-by-4.0\n" in card and "\n- mine\n" in card
    assert "\nMy words.\n\n### Data\n\n```\n# no heading\n```\n" in card and "## Recipe" not in card
    again = _card(export(merged, out=tmp_path / "c", format="merged").folder)
    assert again.count("My words.") == again.count("## Parts and licences") == 1 and "license: cc-by-4.0" in again


def _card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_what_is_there_is_not_lost(tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = export(tiny_encoder_folder, out=out, format="adapter")  # an empty folder is free
    with pytest.raises(UserError, match="already holds an export; replace it with --overwrite"):
        export(tiny_encoder_folder, out=out, format="merged")
    with pytest.raises(UserError, match="holds the encoder that is being exported"):
        export(out, out=out, format="merged", overwrite=True)

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("epic_search.encoder.card.text", fails)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        export(tiny_encoder_folder, out=out, format="merged", overwrite=True)
    assert find(str(out)).fingerprint() == made.fingerprint and list(tmp_path.iterdir()) == [out]
    monkeypatch.undo()
    assert export(tiny_encoder_folder, out=out, format="merged", overwrite=True).fingerprint != made.fingerprint
    assert not (out / "lora").exists() and list(tmp_path.iterdir()) == [out]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match="is no export of epic-search"):
            export(tiny_encoder_folder, out=place, format="adapter", overwrite=True)


def test_forms_that_an_encoder_cannot_take(
    tiny_encoder_folder: Path, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="without training of ours; use --format merged"):
        export(tiny_backbone_folder, out=tmp_path / "a", format="adapter")
    merged = export(tiny_encoder_folder, out=tmp_path / "merged", format="merged").folder
    with pytest.raises(UserError, match="has no adapter to export; use --format merged"):
        export(merged, out=tmp_path / "a", format="adapter")
    with pytest.raises(UserError, match="format 'onnx' is not one of merged, adapter"):
        export(merged, out=tmp_path / "a", format="onnx")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("installed", ["5.1.0", None])
def test_sentence_transformers_must_be_there(
    installed: str | None, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr("epic_search.encoder.export.version", version)
    with pytest.raises(UserError, match=f"6 or later, and {installed or 'none'} is installed; pip install"):
        export(tiny_encoder_folder, out=tmp_path / "a", format="sentence-transformers")


@pytest.mark.parametrize("name", ["./nothing", "./../backbone"])
def test_own_folders_are_in_the_checkpoint(
    name: str, tiny_encoder_folder: Path, tiny_backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_backbone_folder, tmp_path / "backbone")
    copy = shutil.copytree(tiny_encoder_folder, tmp_path / "copy")
    fields = json.loads((copy / "encoder.json").read_text())
    (copy / "encoder.json").write_text(json.dumps({**fields, "backbone": name}))
    with pytest.raises(UserError, match=f"is incomplete: it has no {name}"):
        find(str(copy))
    # A recipe may name a folder seen from where it is run, and then its checkpoint does.
    (tmp_path / "here").mkdir()
    shutil.copytree(tiny_backbone_folder, tmp_path / "here" / name, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")
    assert find(str(copy)).fingerprint() == find(str(tiny_encoder_folder)).fingerprint()


class Hub:
    """What stands at the boundary in these tests: keeps what it is sent, or raises `error`."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.private = False
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, bool]] = []

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        if self.error is not None:
            raise self.error
        self.asked.append((repo_id, private))

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        files = [file for file in Path(folder_path).rglob("*") if file.is_file()]
        self.files = {file.relative_to(folder_path).as_posix(): file.read_bytes() for file in files}
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    return made


def test_push(hub: Hub, tiny_encoder_folder: Path, tmp_path: Path) -> None:
    url = push("epic-mini", repository="org/name")
    assert url == "https://huggingface.co/org/name/commit/1" and hub.asked == [("org/name", False)]
    assert json.loads(hub.files["encoder.json"])["backbone"] == "smollm2-135m-instruct"
    assert {"README.md", "lora/adapter_model.safetensors"} <= hub.files.keys()

    merged = export(tiny_encoder_folder, out=tmp_path / "merged", format="merged").folder
    hub.private = True
    push(merged, repository="org/name", private=True)
    assert hub.files["backbone/model.safetensors"] == (merged / "backbone" / "model.safetensors").read_bytes()
    assert hub.asked[-1] == ("org/name", True)


def test_what_is_not_pushed(hub: Hub, tiny_encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which others do not have; push it as --format merged"):
        push(tiny_encoder_folder, repository="org/name")
    merged = export(tiny_encoder_folder, out=tmp_path / "merged", format="merged").folder
    with pytest.raises(UserError, match="is an export of format merged"):
        push(merged, repository="org/name", format="adapter")
    for wrong in ("name", "a/b/c"):
        with pytest.raises(UserError, match="give it as ORG/NAME"):
            push(merged, repository=wrong)
    with pytest.raises(UserError, match="exists and is public"):
        push(merged, repository="org/name", private=True)
    assert hub.files == {}


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("token", "there is no token for the hub to push org/name; run hf auth login"),
        (401, r"does not accept the token to push org/name \(401\)"),
        (403, r"may not write to org/name \(403\); use one of a member of org"),
        (500, r"refused to take org/name \(500: broken\); try again later"),
        ("offline", "could not be reached to push org/name .*HF_HUB_OFFLINE"),
        ("name", "'org/name' is no name of a repository"),
        ("network", r"could not be reached to push org/name \(no route\); check the network"),
    ],
)
def test_a_hub_that_refuses(failure: object, message: str, hub: Hub) -> None:
    from huggingface_hub import errors

    http = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])
    if isinstance(failure, int):
        request = http.Request("POST", "https://huggingface.co/api/repos/create")
        hub.error = errors.HfHubHTTPError("broken", response=http.Response(failure, request=request))
    elif failure == "network":
        hub.error = http.ConnectError("no route")
    else:
        kinds = {
            "token": errors.LocalTokenNotFoundError,
            "offline": errors.OfflineModeIsEnabled,
            "name": errors.HFValidationError,
        }
        hub.error = kinds[failure]("no")
    with pytest.raises(UserError, match=message) as caught:
        push("epic-mini", repository="org/name")
    assert "\n" not in str(caught.value)
