"""The public face: texts in, float32 unit-length vectors out, in input order.

Everything that needs a vector (command line, training, evaluation, index) goes through `Encoder`.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from epic_search.encoder import checkpoint as checkpoints
from epic_search.encoder.attention import PACKED
from epic_search.encoder.backbone import choose_layout, load_to_encode, load_to_train, save_model
from epic_search.encoder.batching import batches, token_budget
from epic_search.encoder.checkpoint import OWN, Checkpoint
from epic_search.encoder.config import BACKBONE_FOLDER, PROJECTORS_FILE, EncoderConfig, TrainedBackbone
from epic_search.encoder.device import DTYPES, Device, Dtype, choose_device, choose_dtype
from epic_search.encoder.emphasis import Emphasis
from epic_search.encoder.lora import merge_lora
from epic_search.encoder.matryoshka import prepare_training, truncate
from epic_search.encoder.model import EncoderModel, build_model
from epic_search.encoder.prefix import Around, Prefixes
from epic_search.encoder.prompt import KINDS, Demonstration, DemonstrationKind, IdPair, Layout, Prompt, Template
from epic_search.encoder.tokenizer import beginnings, load_tokenizer, spans, token_ids
from epic_search.errors import UserError, require_texts

Progress = Callable[[int], None]

CHUNK = 8192  # texts tokenised at a time: bounds memory on long inputs and still leaves much to sort


class Encoder:
    """A loaded encoder. `load` makes one from a checkpoint, `create` a trainable one from a configuration.

    `fingerprint`: what exactly it is, over configuration, weights and tokenizers; the same digits, the same vectors.
    """

    def __init__(self, checkpoint: Checkpoint, model: EncoderModel, *, dtype: torch.dtype, fingerprint: str) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.name = checkpoint.config.name
        self.reference = checkpoint.reference
        self.fingerprint = fingerprint
        self.model = model
        self.dtype = dtype
        self.dim = checkpoint.config.dim or model.dim
        self.prefixes = Prefixes(model, identity=f"{fingerprint} {dtype}")
        self._arounds: WeakKeyDictionary[Prompt, Around] = WeakKeyDictionary()
        self._emphases: WeakKeyDictionary[Prompt, Emphasis | None] = WeakKeyDictionary()
        self._tokenizer = load_tokenizer(checkpoint.backbone)
        config = model.backbone.config
        eos_id = _first_id(config.eos_token_id)
        if eos_id is None:
            raise UserError(
                f"the model in {checkpoint.backbone} names no end-of-sequence token, and embeddings are read there"
            )
        bos_id = _first_id(config.bos_token_id)
        self.template = Template(
            lambda text: self._tokenizer.encode(text, add_special_tokens=False).ids,
            bos_id=eos_id if bos_id is None else bos_id,
            eos_id=eos_id,
            contextual_position=self.config.contextual.position if self.config.contextual else None,
            markers=self.config.soft_tokens.markers,
        )

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        device: Device = "auto",
        dtype: Dtype = "auto",
        max_length: int | None = None,
        dim: int | None = None,
    ) -> "Encoder":
        """An encoder for inference, by registry name, folder or hub id, with its LoRA weights merged.

        `max_length` makes it read fewer tokens of a text than it could, `dim` makes vectors of fewer dimensions, and
        either makes it another encoder. Raises UserError when the reference leads to no loadable encoder, when it was
        not trained for `dim`, when the device is not there, and when `dtype` is "int8" where it cannot be had.
        """
        found = checkpoints.find(str(reference)).capped(max_length).truncated(dim)
        where = choose_device(device)
        precision = choose_dtype(dtype, where)
        chosen = DTYPES[precision.value]
        weights = torch.bfloat16 if chosen == torch.int8 else chosen  # but for its products
        # Taken with the files just read: a folder may be written again while this encoder is in use.
        bare = load_to_encode(found.backbone, layers=found.config.layers, dtype=weights, device=where)
        model = build_model(found, dtype=weights, backbone=bare)
        encoder = cls(found, model, dtype=chosen, fingerprint=found.fingerprint())
        for name, folder in found.adapters.items():
            merge_lora(model.adapted(name), folder)
        encoder.model.to(where).eval().requires_grad_(False)
        layout = choose_layout(encoder.model.backbone, device=where)
        if chosen == torch.int8 and layout.value != PACKED:
            raise UserError(f"encoder '{encoder.name}' cannot run in int8: {layout.reason}; use dtype auto")
        encoder.model.use_layout(layout.value)
        encoder.model.freeze(int8=chosen == torch.int8)
        return encoder

    @classmethod
    def create(
        cls,
        config: EncoderConfig,
        *,
        start: Path | None = None,
        device: Device = "auto",
        dtype: torch.dtype = torch.float32,
        backbone: TrainedBackbone = "frozen",
    ) -> "Encoder":
        """A trainable encoder: fresh LoRA layers and projectors, or those of the checkpoint folder `start`.

        Of a frozen backbone, only LoRA layers and projectors require gradients. Of another, its own weights do, with
        the LoRA weights of `start` merged into them. The Contextual encoder learns by LoRA layers alone. What is
        trained is float32; `dtype` is that of the frozen weights and of the products.
        """
        found = checkpoints.of_config(config, reference=config.name, folder=start)
        where = choose_device(device)
        # Its vectors change with every step, so none of them may meet another's.
        fingerprint = f"in-training-{uuid.uuid4().hex}"
        if backbone == "frozen":
            model = build_model(found, dtype=dtype)
        else:
            weights = load_to_train(found, embeddings=backbone == "all")
            model = build_model(found, dtype=dtype, backbone=weights)
            own = {"backbone": OWN + BACKBONE_FOLDER, "layers": None, "lora": None}
            found = replace(found, config=config.model_copy(update=own))
        encoder = cls(found, model, dtype=dtype, fingerprint=fingerprint)
        for name, settings in encoder.config.adapters.items():
            from epic_search.encoder.lora_layers import add_lora  # peft takes seconds to import

            add_lora(model.adapted(name), settings, folder=found.adapters.get(name))
        prepare_training(encoder.model, encoder.config, start)
        encoder.model.to(where)
        encoder.model.use_layout(choose_layout(encoder.model.backbone, device=where, training=True).value)
        encoder.model.learn()
        return encoder

    def save(self, folder: Path) -> None:
        """Write a checkpoint folder that `load` reads. For encoders made by `create` (LoRA weights kept apart)."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder)
        state = {name: value.detach().cpu().contiguous() for name, value in self.projectors().items()}
        save_file(state, folder / PROJECTORS_FILE)
        for name, settings in self.config.adapters.items():
            from epic_search.encoder.lora_layers import save_lora

            save_lora(self.model.adapted(name), settings, folder / name, base=self.config.base_of(name))
        if self.config.backbone == OWN + BACKBONE_FOLDER:
            save_model(self.model.backbone, folder / BACKBONE_FOLDER, source=self.checkpoint.backbone)

    def projectors(self) -> dict[str, Tensor]:
        """The tensors of the projectors, by their name in `projectors.safetensors`."""
        return {
            f"{part}.{name}": value
            for part, module in self.model.projectors().items()
            for name, value in module.state_dict().items()
        }

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def encode_passages(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[Sequence[int]] | None = None,
        whole: bool = False,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """(n, dim) float32 unit-length vectors of passages, in input order; `whole`: not cut to `dim`, as in prompts.

        Texts longer than `config.max_length` tokens are cut; `split` makes passages that fit. `ids`: what `token_ids`
        says of the texts, where that is known already. `progress` is called with the number of texts done since its
        last call. Raises UserError for a vector that is not finite, and for what is no list of texts.
        """
        require_texts(texts)
        around = [(self.template.passage, self._no_slots())] * len(texts)
        return self._encode(texts, around, ids=ids, progress=progress, dim=self.model.dim if whole else self.dim)

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        prompt: Prompt | None = None,
        prompts: Sequence[Prompt] | None = None,
        whole: bool = False,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """(n, dim) float32 unit-length vectors of queries under a prompt, in input order; `whole` as for passages.

        `prompts`: one for each text, instead of one for all; texts under different prompts share a batch.
        Raises UserError when another encoder made a prompt's vectors, when a prompt does not fit this one, and for what
        is no list of texts.
        """
        assert prompt is None or prompts is None, "one prompt for all texts, or one for each"
        require_texts(texts)
        if prompts is None:
            prompts = [prompt or self.prompt()] * len(texts)
        assert len(prompts) == len(texts), (len(prompts), len(texts))
        around = [self._around(prompt) for prompt in prompts]
        dim = self.model.dim if whole else self.dim
        emphases = {prompt: found for prompt in dict.fromkeys(prompts) if (found := self._emphasis(prompt)) is not None}
        if not emphases:
            return self._encode(texts, around, progress=progress, dim=dim)
        vectors_NE = self._encode(texts, around, progress=progress, dim=self.model.dim)
        for emphasised, emphasis in emphases.items():
            mine = [i for i, prompt in enumerate(prompts) if prompt is emphasised]
            vectors_NE[mine] = emphasis(vectors_NE[mine])
        return truncate(torch.from_numpy(vectors_NE), dim).numpy()

    def prompt(
        self,
        *,
        task: str | None = None,
        demonstrations: Sequence[Demonstration] = (),
        kind: DemonstrationKind | None = None,
    ) -> Prompt:
        """A prompt of a task and demonstrations. `kind`: what these become; None: what this encoder is trained to read.

        Soft demonstrations come with their vectors: queries encoded under the task alone, passages plainly, and whole,
        also where the encoder's vectors are cut to fewer dimensions. Text demonstrations are not encoded, and their
        prompt can be used with any encoder.

        Raises UserError when the prompt and a text of `config.max_length` tokens do not fit the backbone's context, and
        when a demonstration's text is longer than that, or empty where it is not `alone`: nothing is cut silently.
        """
        kind = kind or self.config.demonstrations
        if kind not in KINDS:
            raise UserError(f"kind '{kind}' is not one of {', '.join(KINDS)}")
        shown = tuple(demonstrations)
        task = task.strip() or None if task else None
        whole = self.model.dim
        plain = Prompt(task, (), np.empty((0, whole), dtype=np.float32), self.fingerprint, kind)
        texts = self._whole_texts(shown)
        self._layout(task, texts if kind == "text" else sum(not one.names_class for one in shown))
        if kind == "text" or not shown:
            return replace(plain, demonstrations=shown)
        queries_KE = np.zeros((len(shown), whole), dtype=np.float32)
        with_text = [i for i, one in enumerate(shown) if not one.alone]
        queries_KE[with_text] = self.encode_queries([shown[i].query for i in with_text], prompt=plain, whole=True)
        passages_KE = self.encode_passages([d.passage for d in shown], whole=True)
        vectors_SE = np.stack([queries_KE, passages_KE], axis=1).reshape(-1, whole)
        return replace(plain, demonstrations=shown, vectors_SE=vectors_SE)

    def layout(self, prompt: Prompt) -> Layout:
        """The token ids and slots around a query under a prompt; raises UserError where `encode_queries` does."""
        if prompt.kind == "text":
            return self._layout(prompt.task, self._whole_texts(prompt.demonstrations))
        if prompt.demonstrations and prompt.encoder != self.fingerprint:
            raise UserError(
                f"the prompt's vectors are of encoder {prompt.encoder[:12]}, and this is '{self.name}' "
                f"({self.fingerprint[:12]}); make the prompt anew with this encoder's prompt()"
            )
        return self._layout(prompt.task, len(prompt.slots_SE) // 2)

    @torch.inference_mode()
    def save_prefix(self, prompt: Prompt, path: Path) -> None:
        """Write what a prompt's constant tokens come to, so that another process need not run them; see `Prefixes`."""
        self.prefixes.save(path, self._around(prompt))

    def restore_prefix(self, prompt: Prompt, path: Path) -> bool:
        """Read what `save_prefix` wrote; False, and nothing is lost, where it is not of this prompt and encoder."""
        return self.prefixes.restore(path, self._around(prompt))

    def _around(self, prompt: Prompt) -> Around:
        """What stands around a query under a prompt, made once for each prompt object."""
        if prompt not in self._arounds:
            self._arounds[prompt] = self.layout(prompt), torch.from_numpy(prompt.slots_SE).to(self.device)
        return self._arounds[prompt]

    def _emphasis(self, prompt: Prompt) -> Emphasis | None:
        """What a prompt's classes change in vectors, made once for each prompt object."""
        if prompt not in self._emphases:
            self._emphases[prompt] = Emphasis.of(prompt)
        return self._emphases[prompt]

    @property
    def context_length(self) -> int:
        """Tokens that the backbone reads, prompt and all."""
        length: int = self.model.backbone.config.max_position_embeddings
        return length

    def split(self, texts: Sequence[str], *, titles: Sequence[str] | None = None) -> list[list[str]]:
        """Each text cut into passages that the encoder reads whole, each repeating an eighth of what it reads.

        `titles`, at most half of `config.max_length` tokens each, have room left for them on a line before each
        passage of their text; None or "" takes none.
        """
        longest = self.config.max_length
        rooms = [longest] * len(texts)
        if titles is not None:
            taken = token_ids(self._tokenizer, [f"{title}\n" if title else "" for title in titles], max_length=longest)
            rooms = [longest - len(ids) for ids in taken]
        return [
            spans(self._tokenizer, text, max_length=room, overlap=longest // 8)
            for text, room in zip(texts, rooms, strict=True)
        ]

    def token_ids(self, texts: Sequence[str], *, max_length: int | None = None) -> list[list[int]]:
        """Token ids of each text, cut at `max_length` (default: `config.max_length`)."""
        return token_ids(self._tokenizer, texts, max_length=max_length or self.config.max_length)

    def cut(self, texts: Sequence[str], *, max_length: int) -> tuple[list[str], list[list[int]]]:
        """The beginning of each text, `max_length` tokens of it: as text and as token ids."""
        return beginnings(self._tokenizer, texts, max_length=max_length)

    def context(self, texts: Sequence[str]) -> Tensor | None:
        """(n, C) Contextual vectors on the encoder's device; None for an encoder without a Contextual token."""
        return self.model.contextual.encode(texts) if self.model.contextual is not None else None

    @torch.inference_mode()
    def _encode(
        self,
        texts: Sequence[str],
        around: Sequence[Around],
        *,
        dim: int,
        ids: Sequence[Sequence[int]] | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        prefix, around = self.prefixes.share(around)
        out_NE = np.empty((len(texts), dim), dtype=np.float32)
        first_of: dict[tuple[str, int], int] = {}  # what comes again is not encoded again
        keys = zip(texts, map(id, around), strict=True)
        first_N = np.array([first_of.setdefault(key, i) for i, key in enumerate(keys)], dtype=np.intp)
        times_N = np.bincount(first_N, minlength=len(texts))
        once = np.fromiter(first_of.values(), dtype=np.intp)
        for chunk in np.split(once, range(CHUNK, len(once), CHUNK)):
            known = self.token_ids([texts[i] for i in chunk]) if ids is None else [ids[i] for i in chunk]
            rows = [around[i][0].row(text_ids) for i, text_ids in zip(chunk, known, strict=True)]
            for batch in batches([len(row) for row in rows], token_budget=token_budget(self.device)):
                which = chunk[batch]
                vectors_BE = self.model(
                    [rows[i] for i in batch],
                    context_BC=self.context([texts[i] for i in which]),
                    soft_SE=torch.cat([around[i][1] for i in which]),
                    prefix=prefix.layers if prefix else None,
                )
                finite_B = vectors_BE.isfinite().all(dim=1).tolist()
                if not all(finite_B):
                    text = texts[which[finite_B.index(False)]]
                    raise UserError(
                        f"encoder '{self.name}' made a vector that is not finite from the text '{text[:80]}'; "
                        "load it in float32, and if that does not help, its weights are damaged"
                    )
                out_NE[which] = truncate(vectors_BE, dim).cpu().numpy()
                if progress is not None:
                    progress(int(times_N[which].sum()))
        return out_NE if len(once) == len(texts) else out_NE[first_N]

    def _layout(self, task: str | None, demonstrations: int | Sequence[IdPair]) -> Layout:
        """The layout, which leaves room for a query of `config.max_length` tokens."""
        layout = self.template.query(task=task, demonstrations=demonstrations)
        if len(layout) + self.config.max_length > self.context_length:
            number = demonstrations if isinstance(demonstrations, int) else len(demonstrations)
            remedy = f"shorten the task or use fewer than {number} demonstrations" if number else "shorten the task"
            raise UserError(
                f"the prompt takes {len(layout)} tokens and a query up to {self.config.max_length}, together more than "
                f"the {self.context_length} that {self.name} reads; {remedy}"
            )
        return layout

    def _whole_texts(self, demonstrations: Sequence[Demonstration]) -> list[IdPair]:
        """The token ids of both texts of those that may stand in a prompt; raises UserError as `prompt` does."""
        texts = [text for pair in demonstrations for text in (pair.query, pair.passage)]
        require_texts(texts)
        found = token_ids(self._tokenizer, texts, max_length=None)
        for i, ids in enumerate(found):
            what = f"the {'passage' if i % 2 else 'query'} of demonstration {i // 2 + 1}"
            if not texts[i].strip() and (i % 2 or not demonstrations[i // 2].alone):
                raise UserError(f"{what} is empty; give both texts of every demonstration")
            if len(ids) > self.config.max_length:
                raise UserError(
                    f"{what} takes {len(ids)} tokens, and {self.name} reads {self.config.max_length} of a text; "
                    "shorten it"
                )
        both = zip(found[::2], found[1::2], strict=True)
        return [ids for ids, one in zip(both, demonstrations, strict=True) if not one.alone]

    def _no_slots(self) -> Tensor:
        return torch.empty(0, self.model.dim, device=self.device)


def _first_id(ids: int | list[int] | None) -> int | None:
    return ids[0] if isinstance(ids, list) else ids
