"""A new collection of a Qdrant server."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epic_search.index.store.connection import Connection, ServerError
from epic_search.index.store.protocol import LEXICAL, SHORT, Schema
from epic_search.index.store.server import WHOLE, ServerStore, has_names, name_there

if TYPE_CHECKING:
    from qdrant_client import QdrantClient


@dataclass(frozen=True, slots=True)
class Layout:
    """How a server keeps a collection; None leaves it to the server.

    `shards`: parts that it is cut into, `replicas`: copies of each, `consistency`: copies that must have a write before
    it counts.
    """

    shards: int | None = None
    replicas: int | None = None
    consistency: int | None = None


def create_collection(
    connection: Connection, collection: str, *, schema: Schema, layout: Layout, metadata: dict[str, Any]
) -> None:
    """Make an empty collection, which filters by the schema's fields; one that is there already stays as it is."""
    from qdrant_client import models

    quantization = None
    if schema.quantize == "int8":
        config = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        quantization = models.ScalarQuantization(scalar=config)
    # The vectors have unit length; Dot keeps them bit for bit, and Cosine would normalise them again.
    dot = models.Distance.DOT
    dense = {
        name_there(name, schema): models.VectorParams(size=dim, distance=dot) for name, dim in schema.dense.items()
    }
    if schema.first_stage is not None:
        dense[SHORT] = models.VectorParams(size=schema.first_stage, distance=dot)
        # The whole vectors are only compared with: they need no search graph, and no memory.
        dense[WHOLE].hnsw_config, dense[WHOLE].on_disk = models.HnswConfigDiff(m=0), True
    sparse = {LEXICAL: models.SparseVectorParams(modifier=models.Modifier.IDF)}

    def create(client: "QdrantClient") -> None:
        client.create_collection(
            collection,
            vectors_config=dense if has_names(schema) else dense[""],
            sparse_vectors_config=sparse if schema.lexical else None,
            quantization_config=quantization,
            shard_number=layout.shards,
            replication_factor=layout.replicas,
            write_consistency_factor=layout.consistency,
            on_disk_payload=True,
            metadata=metadata,
        )

    try:
        connection(create)
    except ServerError as error:
        if error.failure.kind != "exists":  # made by another process, or by a request whose answer got lost
            raise
    ServerStore(connection, collection, schema=schema).add_fields(schema.fields)
