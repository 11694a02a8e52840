"""GGUF conversion: the same tensors as transformers' reader, the right tokens, and never half a folder."""

import json
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest

from epic_search.encoder import gguf as converter
from epic_search.encoder import weights
from epic_search.errors import UserError

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

WIDTH, HEADS, KV_HEADS, FFN, LAYERS = 64, 4, 2, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a tiny byte-level BPE that, like SmolLM2's, joins runs of spaces."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["Ġ Ġ", "ĠĠ ĠĠ", "t h", "th e", "Ġ the"]
    return SPECIAL + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in merges], merges


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    without: tuple[str, ...] = (),
    extra_tensor: str | None = None,
    scaling: str | None = None,
) -> Path:
    """A small decoder with random weights: Q8_0 embeddings, Q4_1 projections, F32 norms, no output matrix."""
    tokens, merges = vocabulary()
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    if "merges" not in without:
        writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)

    def add(name: str, *shape: int, kind: str | None = None) -> None:
        if name in without:
            return
        values = random.normal(size=shape).astype(np.float32)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            quantised = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)

    add("token_embd.weight", len(tokens), WIDTH, kind="Q8_0")
    add("output_norm.weight", WIDTH)
    kv_width = WIDTH // HEADS * KV_HEADS
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", WIDTH)
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", kv_width, WIDTH),
            ("attn_v", kv_width, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", FFN, WIDTH),
            ("ffn_up", FFN, WIDTH),
            ("ffn_down", WIDTH, FFN),
        ):
            add(f"blk.{layer}.{name}.weight", rows, columns, kind="Q4_1")
        if architecture == "qwen2":
            for name, rows in (("attn_q", WIDTH), ("attn_k", kv_width), ("attn_v", kv_width)):
                add(f"blk.{layer}.{name}.bias", rows)
    if extra_tensor is not None:
        add(extra_tensor, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def tiny_folder(tiny_gguf: Path) -> Path:
    return converter.convert(tiny_gguf, tiny_gguf.parent / "converted")


@pytest.fixture(scope="module")
def smollm_gguf() -> Path:
    known = weights.KNOWN["smollm2-135m-instruct"]
    if (path := weights.installed(known)) is None:
        pytest.skip(f"the real GGUF is not installed: {known.install}")
    return path


@pytest.fixture(scope="module")
def smollm_folder(smollm_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converter.convert(smollm_gguf, tmp_path_factory.mktemp("smollm") / "converted")


def tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def by_transformers(path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def assert_same_as_transformers(path: Path, folder: Path) -> None:
    from transformers import AutoConfig

    theirs = by_transformers(path)
    expected = {name: tensor.numpy() for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    ours = tensors(folder)
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == np.float32
        assert np.array_equal(tensor, expected[name]), name
    config = AutoConfig.from_pretrained(folder).to_dict()
    expected_config = theirs.config.to_dict()
    # Where it was read from, not what it computes.
    told = {"architectures", "_name_or_path", "_model_name_or_path", "quantization_config", "unk_token_id"}
    differing = {key for key in config.keys() | expected_config.keys() if config.get(key) != expected_config.get(key)}
    assert differing <= told, differing


def test_tiny_tensors_are_bit_identical_to_transformers(tiny_gguf: Path, tiny_folder: Path) -> None:
    assert_same_as_transformers(tiny_gguf, tiny_folder)


def test_smollm_tensors_are_bit_identical_to_transformers(smollm_gguf: Path, smollm_folder: Path) -> None:
    assert_same_as_transformers(smollm_gguf, smollm_folder)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("1234", ["1", "2", "3", "4"]),
        ("    30000", ["ĠĠĠĠ", "3", "0", "0", "0", "0"]),
        ("limsup =  2 * x", ["lim", "sup", "Ġ=", "ĠĠ", "2", "Ġ*", "Ġx"]),
        ("<|im_start|>7", ["<|im_start|>", "7"]),
    ],
)
def test_every_digit_is_its_own_token(smollm_folder: Path, text: str, pieces: list[str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm_folder)
    ids = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == pieces
    assert tokenizer.decode(ids) == text


def test_expected_ids_and_special_tokens(smollm_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm_folder)
    assert tokenizer("1234").input_ids == [33, 34, 35, 36]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert len(tokenizer) == 49152
    assert tokenizer.model_max_length == 8192


def test_tiny_digits_are_split_from_spaces(tiny_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert tokenizer.tokenize("the    12") == ["the", "ĠĠĠĠ", "1", "2"]


def test_folder_loads_and_repeats_the_forward_pass(tiny_gguf: Path, tiny_folder: Path) -> None:
    import torch
    from transformers import AutoModel

    model, info = AutoModel.from_pretrained(tiny_folder, output_loading_info=True)
    assert not info["missing_keys"]
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.inference_mode():
        ours = model.eval()(ids).last_hidden_state
        theirs = by_transformers(tiny_gguf).eval().model(ids).last_hidden_state
    assert torch.equal(ours, theirs)


def test_other_architectures_go_through_transformers(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", architecture="qwen2")
    folder = converter.convert(path, tmp_path / "converted")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert "quantization_config" not in config
    assert "model.layers.1.self_attn.q_proj.bias" in tensors(folder)
    assert_same_as_transformers(path, folder)


def test_unknown_architecture(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", architecture="rwkv6")
    with pytest.raises(UserError, match="architecture 'rwkv6'"):
        converter.convert(path, tmp_path / "converted")
    assert leftovers(tmp_path) == []


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("size", [0, 3, 10, 400, 5000, -100])
def test_a_cut_file_is_a_user_error(tiny_gguf: Path, tmp_path: Path, size: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:size])
    with pytest.raises(UserError, match=r"cut\.gguf .* is not a complete GGUF file"):
        converter.convert(cut, tmp_path / "converted")
    assert leftovers(tmp_path) == []


def test_not_a_gguf(tmp_path: Path) -> None:
    other = tmp_path / "notes.gguf"
    other.write_text("these are notes, not weights\n" * 10)
    with pytest.raises(UserError, match="is not a complete GGUF file"):
        converter.convert(other, tmp_path / "converted")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        converter.convert(tmp_path / "none.gguf", tmp_path / "converted")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra_tensor": "rope_freqs.weight"}, r"has the tensor rope_freqs\.weight"),
        ({"scaling": "linear"}, "has the rope scaling 'linear'"),
        ({"without": ("blk.1.ffn_up.weight",)}, r"lacks the tensor blk\.1\.ffn_up\.weight"),
    ],
)
def test_what_a_plain_llama_has_not_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", **change)
    with pytest.raises(UserError, match=message):
        converter.convert(path, tmp_path / "converted")


def test_a_failure_after_the_weights_leaves_no_half_folder(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", without=("merges",))
    with pytest.raises(UserError, match=r"lacks the key tokenizer\.ggml\.merges"):
        converter.convert(path, tmp_path / "converted")
    assert leftovers(tmp_path) == []


def test_the_rest_of_a_killed_run_is_replaced(tiny_gguf: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".converted.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    (partial / "junk").write_bytes(b"")
    folder = converter.convert(tiny_gguf, tmp_path / "converted")
    assert sorted(path.name for path in folder.iterdir()) == sorted(converter.FILES)
    assert leftovers(tmp_path) == ["converted"]


def test_a_folder_with_other_things_is_not_touched(tiny_gguf: Path, tmp_path: Path) -> None:
    into = tmp_path / "mine"
    into.mkdir()
    (into / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="exists but is no complete model folder"):
        converter.convert(tiny_gguf, into)
    assert (into / "thesis.txt").read_text() == "irreplaceable"


def test_second_call_does_not_convert_again(tiny_gguf: Path, tmp_path: Path) -> None:
    first = converter.convert(tiny_gguf, tmp_path / "converted")
    made = (first / "model.safetensors").stat()
    again = (converter.convert(tiny_gguf, tmp_path / "converted") / "model.safetensors").stat()
    assert (made.st_ino, made.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


def test_two_processes_at_once(tiny_gguf: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(tiny_gguf, tmp_path / "tiny.gguf"))
    into = tmp_path / "cache" / "converted"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.starmap(converter.convert, [(copy, into)] * 4, chunksize=1)
    assert results == [into] * 4
    assert sorted(path.name for path in into.iterdir()) == sorted(converter.FILES)
    assert leftovers(into.parent) == ["converted"]
