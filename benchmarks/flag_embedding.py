"""FlagEmbedding's inference of bge-en-icl as a peer: the decoder of one of our encoders, demonstrations as text.

    pip install --no-deps FlagEmbedding==1.4.2 ir-datasets==0.6.3

By its public class, as its users have it: on a CPU that computes in float32, tokenises the demonstrations with every
call, and runs a call's first batch twice, once to see whether it fits into memory.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.backbone import save_model


def flag_embedding(encoder: Encoder, *, task: str, demonstrations: Sequence[Demonstration]) -> Callable[[str], object]:
    """What encodes a query with FlagICLModel, with the weights of the encoder's decoder."""
    from FlagEmbedding import FlagICLModel

    with tempfile.TemporaryDirectory() as folder:
        save_model(encoder.model.backbone, Path(folder), source=encoder.checkpoint.backbone)
        shown = [{"instruct": task, "query": d.query, "response": d.passage} for d in demonstrations]
        device = encoder.device.type
        model = FlagICLModel(
            folder,
            query_instruction_for_retrieval=task,
            examples_for_task=shown or None,
            devices=device,
            use_fp16=False,
            use_bf16=device != "cpu",
        )
    return lambda query: model.encode_queries([query])
