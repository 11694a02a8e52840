"""What --quantize int8 costs and brings: recall against exact search, latency, build time, memory, disk.

    python benchmarks/quantization.py --count 100000
    python benchmarks/quantization.py --count 1000000 --queries 200      # takes a while, and 10 GB of disk

Vectors are drawn around random centres, as texts of many topics are; queries are drawn as they are. Each store is
built, closed and opened again before it is asked. Exact search is one matrix product.
"""

import argparse
import json
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np

from epic_search.index.disk import disk_usage
from epic_search.index.store.edge import EdgeStore
from epic_search.index.store.protocol import Point, Schema, StoreQuery

BATCH = 10_000
CENTRES = 1000
SPREAD = 0.7  # of the noise around a centre, whose length is 1


def vectors(count: int, *, dim: int, seed: int) -> np.ndarray:
    """(count, dim) unit vectors around centres that all seeds share."""
    centres_CE = np.random.default_rng(0).standard_normal((CENTRES, dim), dtype=np.float32)
    random = np.random.default_rng(seed)
    vectors_PE = centres_CE[random.integers(CENTRES, size=count)]
    vectors_PE += SPREAD * random.standard_normal((count, dim), dtype=np.float32)
    vectors_PE /= np.linalg.norm(vectors_PE, axis=1, keepdims=True)
    return vectors_PE


def exact(queries_QE: np.ndarray, *, count: int, k: int) -> np.ndarray:
    """(Q, k) numbers of the nearest vectors."""
    scores_QK = np.full((len(queries_QE), k), -np.inf, dtype=np.float32)
    best_QK = np.zeros((len(queries_QE), k), dtype=np.int64)
    for batch, first in enumerate(range(0, count, BATCH)):
        block_QP = queries_QE @ vectors(min(BATCH, count - first), dim=queries_QE.shape[1], seed=batch + 1).T
        numbers_P = np.broadcast_to(np.arange(first, first + block_QP.shape[1]), block_QP.shape)
        all_QP = np.concatenate([scores_QK, block_QP], axis=1)
        order_QK = np.argsort(-all_QP, axis=1)[:, :k]
        scores_QK = np.take_along_axis(all_QP, order_QK, axis=1)
        best_QK = np.take_along_axis(np.concatenate([best_QK, numbers_P], axis=1), order_QK, axis=1)
    return best_QK


def measure(folder: Path, schema: Schema, queries_QE: np.ndarray, truth_QK: np.ndarray, *, count: int) -> dict:
    """Build, reopen and ask one store."""
    dim, k = queries_QE.shape[1], truth_QK.shape[1]
    start = time.perf_counter()
    store = EdgeStore(folder, schema=schema, create=True)
    for batch, first in enumerate(range(0, count, BATCH)):
        block_PE = vectors(min(BATCH, count - first), dim=dim, seed=batch + 1)
        points = [Point(str(uuid.UUID(int=first + row)), {"n": first + row}) for row in range(len(block_PE))]
        store.upsert(points, {"": block_PE})
    store.flush()
    written = time.perf_counter()
    store.optimize()
    built = time.perf_counter()
    store.close()
    store = EdgeStore(folder, schema=schema, create=False)
    try:
        store.search([StoreQuery(row) for row in queries_QE], limit=k)  # warm
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
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("-k", type=int, default=10)
    options = parser.parse_args()
    queries_QE = vectors(options.queries, dim=options.dim, seed=10**9)
    truth_QK = exact(queries_QE, count=options.count, k=options.k)
    for name, schema in {
        "float32": Schema({"": options.dim}),
        "int8": Schema({"": options.dim}, quantize="int8"),
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder) / "store", schema, queries_QE, truth_QK, count=options.count)
        print(json.dumps({"store": name, "count": options.count, "dim": options.dim, **row}), flush=True)


if __name__ == "__main__":
    main()
