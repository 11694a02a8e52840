"""What do vectors and soft tokens look like? Norms, mean cosines between different texts, and what each part finds.

Collapse shows here first: a half whose vectors are all alike, or that finds nothing by itself, adds nothing; nor does a
decoder whose share of a residual is the same for all texts.

    python benchmarks/geometry.py --model epic-mini

Texts are documents of the Python standard library, the same on every machine with the same Python.
"""

from typing import Annotated

import numpy as np
import torch
import typer

from epic_search import stdlib
from epic_search.encoder import Demonstration, Encoder
from epic_search.encoder.matryoshka import halves
from epic_search.encoder.residual import Residual

QUERIES = ["open a file", "count words", "parse a date", "sort a list"]


def main(
    model: str = "epic-mini",
    texts: Annotated[int, typer.Option(help="How many documents.")] = 300,
    k: Annotated[int, typer.Option(help="Demonstrations in a prompt.")] = 6,
) -> None:
    """Print the geometry of an encoder."""
    encoder = Encoder.load(model, dtype="float32")
    shown = [document["text"][:400] for document in stdlib.documents(texts)]
    vectors_NE = encoder.encode_passages(shown)
    print(f"vectors: mean cosine {mean_cosine(vectors_NE):.3f}")
    if encoder.model.residual is not None:
        print_shares(encoder.model.residual, encoder, shown)
    elif encoder.config.pooling == "concat":
        for name, half_ND in zip(("Contextual", "EOS"), split(vectors_NE, encoder), strict=True):
            print(f"  {name} half: mean cosine {mean_cosine(half_ND):.3f}")
        print_halves(encoder, texts)
    with torch.no_grad():
        soft_ND = encoder.model.soft_tokens(torch.from_numpy(vectors_NE).to(encoder.device)).cpu().numpy()
    tokens_ND = encoder.model.backbone.get_input_embeddings().weight.float().cpu().numpy()
    tokens_ND = tokens_ND[np.random.default_rng(0).choice(len(tokens_ND), size=texts, replace=False)]
    for name, rows_ND in (("soft tokens", soft_ND), ("token embeddings", tokens_ND)):
        print(f"{name}: mean norm {np.linalg.norm(rows_ND, axis=1).mean():.2f}, mean cosine {mean_cosine(rows_ND):.3f}")
    plain_QE = encoder.encode_queries(QUERIES)
    prompts = [
        encoder.prompt(demonstrations=[Demonstration(query=t[:60], passage=t) for t in shown[10 * i : 10 * i + k]])
        for i in range(3)
    ]
    under = [encoder.encode_queries(QUERIES, prompt=prompt) for prompt in prompts]
    print(f"a query without and with {k} demonstrations: cosine {(plain_QE * under[0]).sum(axis=1).mean():.3f}")
    print(f"a query under other demonstrations: cosine {(under[0] * under[1]).sum(axis=1).mean():.4f}")


def print_shares(residual: Residual, encoder: Encoder, texts: list[str]) -> None:
    """How long the Contextual part of the vectors is, before they are scaled, and what the decoder's adds to it."""
    parts: dict[str, list[torch.Tensor]] = {"Contextual": [], "decoder's": []}
    hooks = [
        part.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
        for part, kept in zip((residual.context, residual.states), parts.values(), strict=True)
    ]
    encoder.encode_passages(texts)
    for hook in hooks:
        hook.remove()
    for name, kept in parts.items():
        part_NC = torch.cat(kept)
        varying = (part_NC - part_NC.mean(dim=0)).norm(dim=1).mean()
        print(f"  {name} part: mean norm {part_NC.norm(dim=1).mean():.3f}, of what differs between texts {varying:.3f}")


def print_halves(encoder: Encoder, number: int) -> None:
    """Which share of descriptions have their own code nearest, by the whole vector and by its parts."""
    pairs = [pair for _, pair in zip(range(number), stdlib.pairs(), strict=False)]
    queries, passages = ([pair[i] for pair in pairs] for i in (0, 1))
    queries_QE, passages_PE = encoder.encode_queries(queries), encoder.encode_passages(passages)
    context_QC, context_PC = (encoder.context(some) for some in (queries, passages))
    assert context_QC is not None and context_PC is not None
    parts = {
        "the whole vector": (queries_QE, passages_PE),
        "its Contextual half": (split(queries_QE, encoder)[0], split(passages_PE, encoder)[0]),
        "its EOS half": (split(queries_QE, encoder)[1], split(passages_PE, encoder)[1]),
        "the Contextual encoder by itself": (context_QC.float().cpu().numpy(), context_PC.float().cpu().numpy()),
    }
    for name, (mine_QD, theirs_PD) in parts.items():
        theirs_PD = theirs_PD / np.linalg.norm(theirs_PD, axis=1, keepdims=True)
        nearest_Q = (mine_QD @ theirs_PD.T).argmax(axis=1)
        print(f"  right at rank 1 of {len(pairs)} by {name}: {(nearest_Q == np.arange(len(pairs))).mean():.3f}")


def split(vectors_NE: np.ndarray, encoder: Encoder) -> list[np.ndarray]:
    """The Contextual and the EOS half of vectors."""
    return [half_ND.numpy() for half_ND in halves(torch.from_numpy(vectors_NE), encoder.config)]


def mean_cosine(rows_ND: np.ndarray) -> float:
    """Mean cosine between different rows."""
    unit_ND = rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
    n = len(unit_ND)
    return float(((unit_ND @ unit_ND.T).sum() - n) / (n * (n - 1)))


if __name__ == "__main__":
    typer.run(main)
