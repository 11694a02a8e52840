"""The constant part of a prompt, run through the decoder once: its keys and values serve every query.

BOS, instruction, demonstrations and "Query:" are the same for all queries of a task, so what every layer makes of them
is, too. It is kept by content: another prompt object with the same tokens and vectors finds it, and another encoder,
precision or device never does. With the Contextual token before the instruction only BOS is constant, and nothing is
shared.

Shapes: P tokens of the prefix, G key/value heads, W head width, S soft slots, E width of an embedding.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from epic_search.encoder.attention import KeyValue
from epic_search.encoder.model import EncoderModel
from epic_search.encoder.prompt import CONTEXTUAL_SLOT, SOFT_SLOT, Layout

FORMAT = 1  # of the keys and values themselves: another way of computing them is another prefix
SHORTEST = 4
"""Tokens of a prefix that is worth a place: a passage's BOS alone is not."""
WORTH_A_FILE = 128
"""Tokens of a prefix that is written to a file. Soft demonstrations make a shorter one, run in less than one part in a
hundred of the time that a program takes to load the encoder."""
MEMORY = 256 * 2**20
"""Bytes of prefixes that an encoder keeps: thousands of prompts of a small backbone, some of a 7B one."""

Around = tuple[Layout, Tensor]
"""What stands around a text: the layout, and (S, E) vectors for its soft slots."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of each layer for tokens that stand before others. `key`: what exactly they were made of."""

    key: str
    layers: list[KeyValue]

    def __len__(self) -> int:
        return len(self.layers[0][0])

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(part.nbytes for layer in self.layers for part in layer)

    def save(self, path: Path) -> None:
        """Write one safetensors file, (layers, P, G, W) for keys and for values, with the key as metadata."""
        from safetensors.torch import save_file

        keys, values = (torch.stack(parts).cpu() for parts in zip(*self.layers, strict=True))
        save_file({"keys": keys, "values": values}, path, metadata={"key": self.key})

    @classmethod
    def load(cls, path: Path, *, key: str, device: torch.device) -> "Prefix | None":
        """What `save` wrote, if it is of this key; None for another's, and where there is no file or a damaged one."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                if (file.metadata() or {}).get("key") != key:
                    return None
                layers = zip(file.get_tensor("keys"), file.get_tensor("values"), strict=True)
                return cls(key, list(layers))
        except (FileNotFoundError, SafetensorError):
            return None


class Prefixes:
    """The prefixes of an encoder, those used last within `memory` bytes (and the last one always). Thread-safe.

    `identity`: what decides keys and values besides a prefix's own tokens and vectors, and the device.
    """

    def __init__(self, model: EncoderModel, *, identity: str, memory: int = MEMORY) -> None:
        self._model = model
        self._identity = identity
        self._memory = memory
        self._kept: OrderedDict[str, Prefix] = OrderedDict()
        self._lock = Lock()

    def share(self, around: Sequence[Around]) -> tuple[Prefix | None, Sequence[Around]]:
        """The prefix that the given surroundings of texts have in common, and what remains around each text.

        A prefix that is not kept is run, by one thread while others wait for it. None: nothing is shared.
        """
        different = {id(one): one for one in around}
        ids = common([layout for layout, _ in different.values()])
        if not self._model.shares_prefixes or len(ids) < SHORTEST:
            return None, around
        slots = ids.count(SOFT_SLOT)
        rests = {
            key: (Layout(layout.head[len(ids) :], layout.tail), soft_SE[slots:])
            for key, (layout, soft_SE) in different.items()
        }
        return self._find(ids, around[0][1][:slots]), [rests[id(one)] for one in around]

    def _find(self, ids: tuple[int, ...], soft_SE: Tensor) -> Prefix:
        key = self._key(ids, soft_SE)
        with self._lock:
            if key not in self._kept:
                self._keep(Prefix(key, self._model.prefill(ids, soft_SE=soft_SE)))
            self._kept.move_to_end(key)
            return self._kept[key]

    def save(self, path: Path, around: Around) -> None:
        """Write the prefix of a layout to a file, if it is a long one; a file of an earlier prefix goes."""
        long = len(common([around[0]])) >= WORTH_A_FILE
        prefix = self.share([around])[0] if long else None
        if prefix is None:
            path.unlink(missing_ok=True)
            return
        temporary = path.with_suffix(".tmp")
        prefix.save(temporary)
        temporary.replace(path)

    def restore(self, path: Path, around: Around) -> bool:
        """Keep the prefix of a layout as `save` wrote it; False where the file holds no such one."""
        layout, soft_SE = around
        key = self._key(common([layout]), soft_SE)
        prefix = Prefix.load(path, key=key, device=self._model.device) if self._model.shares_prefixes else None
        if prefix is not None:
            with self._lock:
                self._keep(prefix)
        return prefix is not None

    def _keep(self, prefix: Prefix) -> None:
        self._kept[prefix.key] = prefix
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._memory:
            self._kept.popitem(last=False)

    def _key(self, ids: tuple[int, ...], soft_SE: Tensor) -> str:
        digest = hashlib.sha256(f"{FORMAT} {self._identity} {self._model.device.type} {ids}".encode())
        digest.update(soft_SE.cpu().numpy().tobytes())
        return digest.hexdigest()


def common(layouts: Sequence[Layout]) -> tuple[int, ...]:
    """The ids that stand before every text, whatever it is.

    A Contextual token is another for each text. Soft slots of different layouts hold different vectors.
    """
    ends = (CONTEXTUAL_SLOT,) if len(layouts) == 1 else (CONTEXTUAL_SLOT, SOFT_SLOT)
    heads = [tuple(takewhile(lambda id: id not in ends, layout.head)) for layout in layouts]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*heads, strict=False))
    return tuple(column[0] for column in alike)
