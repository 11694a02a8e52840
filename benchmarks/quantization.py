"""What --quantize int8 and --first-stage cost and bring: recall against exact search, latency, time, memory, disk.

    python benchmarks/quantization.py --count 20000
    python benchmarks/quantization.py --count 1000000 --only int8 --first-stage 128 --folder /data
    epic-search indexes export NAME -o /dev/null --vectors v.npy
    python benchmarks/quantization.py --vectors v.npy --rotate           # real ones; every fortieth is a query

Without --vectors, they are drawn from the seeded mixture of mixture.py, a chunk at a time; its first dimensions hold
most, as in vectors that were trained to be cut (Matryoshka). Real ones of an encoder that was not trained so lose in a
first stage; --rotate turns them (cosines stay) so that they lead with their principal directions.
Queries are drawn as the vectors are. Each store is built, closed and opened again before it is asked. Exact search is
one matrix product a chunk. A million vectors take about 8 GB of disk and half a GB of memory besides the engine's; the
search graph of each store takes most of the time (`build_s`), so --only names those that are wanted.
"""

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mixture import drawn, unit

from epic_search.index.disk import disk_usage
from epic_search.index.store.edge import EdgeStore
from epic_search.index.store.protocol import Point, Schema, StoreQuery

CHUNK = 10_000
QUERY_SEED = 10**9
EVERY = 40  # of real vectors, one in so many is a query

Chunk = Callable[[int], np.ndarray]  # (P, E) unit vectors by the number of the chunk


def rotated(vectors_PE: np.ndarray) -> np.ndarray:
    """The vectors in the basis of their principal directions, the first first."""
    _, directions_EE = np.linalg.eigh(vectors_PE.T @ vectors_PE)
    return np.ascontiguousarray(vectors_PE @ directions_EE[:, ::-1])


def exact(queries_QE: np.ndarray, chunk: Chunk, *, chunks: int, k: int) -> np.ndarray:
    """(Q, k) numbers of the nearest vectors."""
    scores_QK = np.full((len(queries_QE), k), -np.inf, dtype=np.float32)
    best_QK = np.zeros((len(queries_QE), k), dtype=np.int64)
    for number in range(chunks):
        block_QP = queries_QE @ chunk(number).T
        near_QK = np.argpartition(-block_QP, min(k, block_QP.shape[1] - 1), axis=1)[:, :k]
        all_QK = np.concatenate([scores_QK, np.take_along_axis(block_QP, near_QK, axis=1)], axis=1)
        order_QK = np.argsort(-all_QK, axis=1)[:, :k]
        scores_QK = np.take_along_axis(all_QK, order_QK, axis=1)
        best_QK = np.take_along_axis(np.concatenate([best_QK, number * CHUNK + near_QK], axis=1), order_QK, axis=1)
    return best_QK


def measure(
    folder: Path, schema: Schema, chunk: Chunk, queries_QE: np.ndarray, truth_QK: np.ndarray, *, chunks: int
) -> dict:
    """Build, reopen and ask one store."""
    k = truth_QK.shape[1]
    start = time.perf_counter()
    store = EdgeStore(folder, schema=schema, create=True)
    for number in range(chunks):
        block_PE = chunk(number)
        numbers = range(number * CHUNK, number * CHUNK + len(block_PE))
        store.upsert([Point(str(uuid.UUID(int=n)), {"n": n}) for n in numbers], {"": block_PE})
    store.flush()
    written = time.perf_counter()
    store.optimize()
    built = time.perf_counter()
    store.close()
    store = EdgeStore(folder, schema=schema, create=False)
    try:
        for row_E in queries_QE:  # warm
            store.search([StoreQuery(row_E)], limit=k, fields=["n"])
        seconds, found = [], 0
        for row_E, truth_K in zip(queries_QE, truth_QK, strict=True):
            begun = time.perf_counter()
            [matches] = store.search([StoreQuery(row_E)], limit=k, fields=["n"])
            seconds.append(time.perf_counter() - begun)
            found += len({match.payload["n"] for match in matches} & set(truth_K.tolist()))
        memory = memory_of(store._process.pid)
    finally:
        store.close()
    return {
        "recall": round(found / truth_QK.size, 4),
        "p50_ms": round(1000 * float(np.percentile(seconds, 50)), 2),
        "p99_ms": round(1000 * float(np.percentile(seconds, 99)), 2),
        "write_s": round(written - start, 1),
        "build_s": round(built - written, 1),
        **memory,
        "disk_mb": disk_usage(folder) // 2**20,
    }


def memory_of(pid: int) -> dict[str, int]:
    """Resident memory of a process in MiB: its own, and pages of its files, which the system may take back."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    sizes = {
        name: int(rest.split()[0]) // 1024 for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name
    }
    return {"own_mb": sizes["RssAnon"], "file_mb": sizes["RssFile"] + sizes["RssShmem"]}


def main() -> None:
    """Print one JSON line a store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=576)
    parser.add_argument("--vectors", type=Path, help=".npy, float32, a row a passage; instead of --count and --dim")
    parser.add_argument("--rotate", action="store_true")
    parser.add_argument("--first-stage", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument(
        "--only", default="", help="Only the stores that have this in their name: int8, first stage ..."
    )
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="Where the stores are made, one after the other.")
    options = parser.parse_args()
    if options.vectors is None:
        count, dim = options.count, options.dim
        queries_QE = drawn(options.queries, dim=dim, seed=QUERY_SEED)

        def chunk(number: int) -> np.ndarray:
            return drawn(min(CHUNK, count - number * CHUNK), dim=dim, seed=number + 1)

    else:
        real_PE = unit(np.load(options.vectors))
        real_PE = rotated(real_PE) if options.rotate else real_PE
        is_query_P = np.arange(len(real_PE)) % EVERY == 0
        queries_QE, stored_PE = real_PE[is_query_P][: options.queries], real_PE[~is_query_P]
        count, dim = stored_PE.shape

        def chunk(number: int) -> np.ndarray:
            return stored_PE[number * CHUNK : (number + 1) * CHUNK]

    chunks = -(-count // CHUNK)
    truth_QK = exact(queries_QE, chunk, chunks=chunks, k=options.k)
    stores = {"whole": Schema({"": dim}), "whole, int8": Schema({"": dim}, quantize="int8")}
    for width in options.first_stage:
        stores[f"first stage {width}"] = Schema({"": dim}, first_stage=width)
        stores[f"first stage {width}, int8"] = Schema({"": dim}, first_stage=width, quantize="int8")
    for name, schema in stores.items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            row = measure(Path(folder) / "store", schema, chunk, queries_QE, truth_QK, chunks=chunks)
        print(json.dumps({"store": name, "count": count, "dim": dim, **row}), flush=True)


if __name__ == "__main__":
    main()
