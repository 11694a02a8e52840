"""A tiny but real encoder, made from nothing: 2-layer Llama, 1-layer BERT, a byte tokenizer, LoRA and projectors."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from epic_search.encoder import Encoder
from epic_search.encoder.config import EncoderConfig

DATA = Path(os.environ.get("EPIC_SEARCH_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of evaluation and training data; tests that need it are skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no shared data at {DATA} (set EPIC_SEARCH_DATA)")
    return DATA


@pytest.fixture(scope="session")
def tiny_backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    _byte_tokenizer(["<bos>", "<eos>", "<unk>"]).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tiny_contextual_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny") / "bert"
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = _byte_tokenizer(["[CLS]", "[SEP]", "[UNK]"])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 256), ("[SEP]", 257)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_backbone_folder: Path, tiny_contextual_folder: Path) -> EncoderConfig:
    return EncoderConfig.model_validate(
        {
            "name": "tiny",
            "backbone": str(tiny_backbone_folder),
            "layers": 2,
            "max_length": 64,
            "pooling": "concat",
            "contextual": {"encoder": str(tiny_contextual_folder), "max_length": 64},
            "lora": {"rank": 4, "alpha": 8},
        }
    )


@pytest.fixture(scope="session")
def wide_config(tiny_config: EncoderConfig, tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    """As the tiny one, with a backbone whose heads are as wide as tiles."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny, folder = Path(tiny_config.backbone), tmp_path_factory.mktemp("wide") / "llama"
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(tiny, hidden_size=64, intermediate_size=160, head_dim=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    shutil.copy(tiny / "tokenizer.json", folder)
    return tiny_config.model_copy(update={"name": "wide", "backbone": str(folder)})


@pytest.fixture(scope="session")
def tiny_encoder_folder(tiny_config: EncoderConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose LoRA layers are not zero, as after training."""
    folder = tmp_path_factory.mktemp("tiny") / "encoder"
    torch.manual_seed(2)
    encoder = Encoder.create(tiny_config, device="cpu")
    for name, parameter in encoder.model.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    encoder.save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text_folder(
    tiny_encoder_folder: Path, tiny_config: EncoderConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same checkpoint as if it had been trained to read demonstrations as texts."""
    folder = shutil.copytree(tiny_encoder_folder, tmp_path_factory.mktemp("tiny") / "text-encoder")
    tiny_config.model_copy(update={"name": "tiny-text", "demonstrations": "text"}).save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tiny_encoder_folder: Path) -> Encoder:
    return Encoder.load(tiny_encoder_folder, device="cpu", dtype="float32")


def _byte_tokenizer(special: list[str]):
    """Each byte is a token (ids 0 to 255), then the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer
