"""Models read without transformers give the vectors that transformers gives, and nothing of it is imported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from epic_search.encoder import Encoder
from epic_search.encoder.backbone import load_backbone, load_to_encode
from epic_search.encoder.bare import BareDecoder, decoder_config
from epic_search.encoder.batching import lay_out
from epic_search.encoder.bert import Bert
from epic_search.errors import UserError

ROWS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
CPU = torch.device("cpu")


def test_an_encoder_in_use_imports_neither_transformers_nor_the_compiler(tiny_encoder_folder: Path) -> None:
    code = (
        "import sys; from epic_search.encoder import Encoder; encoder = Encoder.load(sys.argv[1]);"
        "encoder.encode_queries(['a']); encoder.encode_passages(['a', 'b c']);"
        "print([name for name in ('transformers', 'peft', 'datasets', 'torch._dynamo') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tiny_encoder_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_bert_is_that_of_transformers(
    tiny_contextual_folder: Path, tmp_path: Path, layout: str, activation: str
) -> None:
    from transformers import BertModel

    folder = edited(tiny_contextual_folder, tmp_path / "bert", hidden_act=activation)
    theirs = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    batch = lay_out(ROWS, layout, device=CPU)
    with torch.no_grad():
        states_ND = Bert(folder, dtype=torch.float32)(batch).flatten(0, 1)
        for start, row in zip(batch.starts_B.tolist(), ROWS, strict=True):
            expected_LD = theirs(input_ids=torch.tensor([row])).last_hidden_state[0]
            torch.testing.assert_close(states_ND[start : start + len(row)], expected_LD, atol=1e-5, rtol=1e-5)


def test_bert_of_an_old_checkpoint(tiny_contextual_folder: Path, tmp_path: Path) -> None:
    """Such as bert-base-uncased: a model around the model, and other names in the norms."""
    folder = edited(tiny_contextual_folder, tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    renamed = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in weights.items()
    }
    save_file(renamed, folder / "model.safetensors")
    state = Bert(folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in state.items())


def test_bert_of_another_kind_is_refused(tiny_contextual_folder: Path, tmp_path: Path) -> None:
    folder = edited(tiny_contextual_folder, tmp_path / "bert", hidden_act="mish")
    with pytest.raises(UserError, match="activation mish"):
        Bert(folder, dtype=torch.float32)
    folder = edited(tiny_contextual_folder, tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(UserError, match=r"not those of its config\.json"):
        Bert(folder, dtype=torch.float32)


def test_decoder_has_the_weights_that_transformers_reads(tiny_backbone_folder: Path) -> None:
    bare = load_to_encode(tiny_backbone_folder, layers=2, dtype=torch.bfloat16, device=CPU)
    theirs = load_backbone(tiny_backbone_folder, layers=2, dtype=torch.bfloat16)
    assert isinstance(bare, BareDecoder) and bare.dtype == torch.bfloat16
    for model in (bare, bare.in_transformers()):
        state = model.state_dict()
        assert state.keys() == theirs.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())
    positions_BT = torch.arange(40)[None]
    states = torch.zeros(1, 40, 32)
    expected = theirs.rotary_emb(states, positions_BT)
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(bare.rotary_emb(states, positions_BT), expected, strict=True)
    )


@pytest.mark.parametrize(
    ("change", "is_bare"),
    [
        ({}, True),
        ({"rope_parameters": None, "rope_theta": 500.0}, True),
        ({"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}, False),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}, False),
        ({"rope_parameters": None, "rope_theta": None}, False),
        ({"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, False),
        ({"num_key_value_heads": None}, False),
        ({"bos_token_id": None}, False),
        ({"hidden_act": "gelu"}, False),
    ],
)
def test_what_is_not_spelt_out_or_not_plain_goes_through_transformers(
    tiny_backbone_folder: Path, tmp_path: Path, change: dict, is_bare: bool
) -> None:
    if "num_key_value_heads" in change:  # transformers takes as many as heads: other matrices
        assert decoder_config(edited(tiny_backbone_folder, tmp_path / "llama", **change)) is None
        return
    encoder = Encoder.load(edited(tiny_backbone_folder, tmp_path / "llama", **change), device="cpu", dtype="float32")
    assert isinstance(encoder.model.backbone, BareDecoder) == is_bare
    vectors_NE = encoder.encode_passages(["a", "some more words in it"])
    encoder.model.use_layout("padded")
    np.testing.assert_allclose(vectors_NE, encoder.encode_passages(["a", "some more words in it"]), atol=1e-5)


def test_what_a_text_begins_with_where_the_configuration_does_not_say(
    tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    """It is Llama's own first token then, and none where it says null."""
    folder = edited(tiny_backbone_folder, tmp_path / "llama", bos_token_id=None)
    assert Encoder.load(folder, device="cpu", dtype="float32").template.passage.head[0] == 1
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": None}))
    encoder = Encoder.load(folder, device="cpu", dtype="float32")
    assert (
        isinstance(encoder.model.backbone, BareDecoder) and encoder.template.passage.head[0] == config["eos_token_id"]
    )


def test_biases_are_there_where_the_configuration_says_so(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    """And not where a file happens to have some, which transformers leaves out."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(tiny_backbone_folder, attention_bias=True, mlp_bias=True)
    model = AutoModel.from_config(config)
    torch.nn.init.normal_(model.layers[0].self_attn.q_proj.bias)
    model.save_pretrained(tmp_path / "biased")
    for changes in ({}, {"attention_bias": False}, {"mlp_bias": False}):
        folder = edited(tmp_path / "biased", tmp_path / f"without {'-'.join(changes)}", **changes)
        bare = load_to_encode(folder, layers=None, dtype=torch.float32, device=CPU)
        theirs = load_backbone(folder, layers=None, dtype=torch.float32).state_dict()
        assert bare is not None and bare.state_dict().keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in bare.state_dict().items())


def test_the_file_that_transformers_reads_of_two(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    """A folder that was written twice, the second time in one file."""
    folder = edited(tiny_backbone_folder, tmp_path / "both")
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "old.safetensors")
    listed = {"metadata": {}, "weight_map": dict.fromkeys(weights, "old.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    bare = load_to_encode(folder, layers=None, dtype=torch.float32, device=CPU)
    theirs = load_backbone(folder, layers=None, dtype=torch.float32)
    assert bare is not None and torch.equal(bare.embed_tokens.weight, theirs.get_input_embeddings().weight)


def test_weights_in_several_files(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    load_backbone(tiny_backbone_folder, layers=None, dtype=torch.float32).save_pretrained(
        tmp_path, max_shard_size="20kB"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    bare = load_to_encode(tmp_path, layers=None, dtype=torch.float32, device=CPU)
    whole = load_to_encode(tiny_backbone_folder, layers=None, dtype=torch.float32, device=CPU)
    assert bare is not None and whole is not None
    assert all(torch.equal(value, bare.state_dict()[name]) for name, value in whole.state_dict().items())


def edited(folder: Path, copy: Path, **changes: object) -> Path:
    """A copy of a model folder with another configuration."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    kept = {name: value for name, value in (config | changes).items() if value is not None}
    (copy / "config.json").write_text(json.dumps(kept))
    return copy
