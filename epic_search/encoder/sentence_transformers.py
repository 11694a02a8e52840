"""Our encoders as sentence-transformers models. Importing this module needs sentence-transformers.

Its own modules can say what an encoder pooled at the last token does: a text between fixed token ids. Passages and
queries have different ones, so there are two routes, each with a tokenizer that puts its ids around the text (prompts
only stand before a text, and "Response:" comes after it). Everything else is the module `EpicSearch` of this file.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from epic_search.encoder.backbone import choose_layout, save_model
from epic_search.encoder.config import CONFIG_FILE, EncoderConfig
from epic_search.encoder.encoder import Encoder
from epic_search.encoder.export import write_merged
from epic_search.encoder.prompt import INSTRUCTION, QUERY, Demonstration, Layout, Prompt
from epic_search.encoder.tokenizer import load_tokenizer
from epic_search.errors import UserError

# What may stand in a prompt: our template's own words before a query, or the task's sentence alone.
_PROMPT = re.compile(rf"(?:{INSTRUCTION.format(task='(?P<task>.*?)')})?{QUERY}\s*", re.DOTALL)


class EpicSearch(InputModule):
    """The whole encoder as one module: texts in, unit-length vectors out, for inference.

    `encode_query` and `encode_document` give what `Encoder.encode_queries` and `encode_passages` give. A query's
    `prompt` is the task in one sentence; `demonstrations=[(query, passage), ...]` go with it. `encode` reads a text as
    a passage unless there is a prompt.
    """

    config_file_name = CONFIG_FILE
    config_keys = list(EncoderConfig.model_fields)
    forward_kwargs = {"demonstrations"}
    save_in_root = True

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.model = encoder.model
        self._prompt: tuple[object, Prompt] | None = None

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """The texts as they are, with their role; raises UserError for what is no text."""
        # A TypeError would have sentence-transformers try again without the prompt.
        if not all(isinstance(text, str) for text in inputs):
            raise UserError("an input is not a string; this encoder reads texts only")
        return {"texts": list(inputs), "role": kwargs.get("task"), "prompt": prompt}

    def forward(
        self, features: dict[str, Any], demonstrations: Sequence[tuple[str, str]] = (), **_: object
    ) -> dict[str, Any]:
        """Adds "sentence_embedding": (n, dim) float32 unit-length vectors on the model's device.

        Raises UserError for a prompt or demonstrations on documents, which are encoded without.
        """
        texts, prompt = features["texts"], features["prompt"]
        asked = bool(prompt or demonstrations)
        if features["role"] == "document" and asked:
            raise UserError("documents are encoded without prompt and demonstrations; give these to encode_query alone")
        if features["role"] == "query" or asked:
            vectors = self.encoder.encode_queries(texts, prompt=self._prompt_of(prompt, demonstrations))
        else:
            vectors = self.encoder.encode_passages(texts)
        features["sentence_embedding"] = torch.from_numpy(vectors).to(self.model.device)
        return features

    def _prompt_of(self, prompt: str | None, demonstrations: Sequence[tuple[str, str]]) -> Prompt:
        """The prompt with its demonstrations' vectors, kept from one batch to the next."""
        key = (prompt, tuple((query, passage) for query, passage in demonstrations))
        if self._prompt is None or self._prompt[0] != key:
            said = _PROMPT.fullmatch(prompt or "")
            task = said["task"] if said else prompt
            pairs = [Demonstration(query, passage) for query, passage in demonstrations]
            self._prompt = key, self.encoder.prompt(task=task, demonstrations=pairs)
        return self._prompt[1]

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text that are read; prompts come on top."""
        return self.encoder.config.max_length

    def get_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return self.encoder.dim

    def get_config_dict(self) -> dict[str, Any]:
        """What `encoder.json` holds."""
        return self.encoder.config.model_dump(mode="json", exclude_none=True)

    def save(self, output_path: str, *args: object, **kwargs: object) -> None:
        """Write a merged checkpoint, always in safetensors."""
        write_merged(self.encoder, Path(output_path))

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "EpicSearch":
        """The module of a folder or hub id, in float32 unless `model_kwargs` says dtype="bfloat16".

        Raises UserError when the folder holds no encoder of ours.
        """
        folder = cls.load_dir_path(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        asked = kwargs.get("model_kwargs") or {}
        dtype = str(asked.get("dtype") or asked.get("torch_dtype") or "float32").removeprefix("torch.")
        return _open(folder or model_name_or_path, dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        # For the processes of encode(pool=...): they read the folder again.
        return _open, (str(self.encoder.checkpoint.folder), str(self.encoder.dtype).removeprefix("torch."))

    def _apply(self, fn: Any, recurse: bool = True) -> "EpicSearch":
        """What `to` does, and then the layout that is good on the new device."""
        super()._apply(fn, recurse)
        self.model.use_layout(choose_layout(self.model.backbone, device=self.model.device).value)
        return self


def _open(folder: str, dtype: Any) -> EpicSearch:
    return EpicSearch(Encoder.load(folder, device="cpu", dtype=dtype))


def write_folder(encoder: Encoder, folder: Path) -> bool:
    """Write what `SentenceTransformer(folder)` loads; whether it does so without epic-search.

    For an encoder in float32 with its LoRA weights merged.
    """
    standalone = _is_plain(encoder)
    if standalone:
        model = _plain_model(encoder)
    else:
        model = SentenceTransformer(modules=[EpicSearch(encoder)], device="cpu", prompts={"query": QUERY})
    model.save_pretrained(str(folder), create_model_card=False)
    return standalone


def _is_plain(encoder: Encoder) -> bool:
    """Whether modules of sentence-transformers can give this encoder's vectors."""
    context = encoder.model.backbone.config.max_position_embeddings
    return (
        encoder.config.contextual is None
        # A mean over the text's own tokens would need the tokens after the text left out.
        and encoder.config.pooling == "last"
        # sentence-transformers cuts texts where the model's positions end.
        and encoder.config.max_length + len(encoder.template.query(task=None, demonstrations=0)) <= context
    )


def _plain_model(encoder: Encoder) -> SentenceTransformer:
    """A route for queries and one for documents, with the same weights and tokenizers of their own."""
    with TemporaryDirectory() as work:
        save_model(encoder.model.backbone, Path(work), source=encoder.checkpoint.backbone)
        document_tokenizer = _tokenizer(encoder, encoder.template.passage)
        document_tokenizer.save_pretrained(work)
        document = Transformer(work)
        document.processor = document_tokenizer
    query = copy.copy(document)
    query.processor = _tokenizer(encoder, encoder.template.query(task=None, demonstrations=0))
    router = Router.for_query_document(query_modules=[query], document_modules=[document])
    pooling = Pooling(encoder.dim, pooling_mode="lasttoken")
    return SentenceTransformer(modules=[router, pooling, Normalize()], device="cpu", similarity_fn_name="cosine")


def _tokenizer(encoder: Encoder, layout: Layout) -> Any:
    """The backbone's tokenizer, with the layout's ids around every text, cutting a text at `max_length` tokens."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = load_tokenizer(encoder.checkpoint.backbone)
    around = {"[HEAD]": layout.head, "[TAIL]": layout.tail}
    tokenizer.post_processor = TemplateProcessing(
        single="[HEAD] $A [TAIL]",
        special_tokens=[
            {"id": name, "ids": list(ids), "tokens": [tokenizer.id_to_token(i) for i in ids]}
            for name, ids in around.items()
        ],
    )
    end = tokenizer.id_to_token(layout.tail[-1])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token=end,  # under the attention mask, any token will do
        padding_side="right",
        truncation_side="right",
        split_special_tokens=True,  # what users write is text, also where it looks like a special token
        model_max_length=encoder.config.max_length + len(layout),
        model_input_names=["input_ids", "attention_mask"],
    )
