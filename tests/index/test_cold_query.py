"""A query in a process of its own: what it does not need, it does not import."""

import subprocess
import sys
from pathlib import Path

from epic_search.index import index_corpus

ROOT = Path(__file__).parents[2]


def test_a_lexical_query_loads_no_model(corpus, encoder, home):
    index_corpus(corpus(20), name="test", encoder=encoder, home=home)
    command = [sys.executable, "-X", "importtime", "-m", "epic_search", "query", "word7", "--mode", "lexical"]
    done = subprocess.run([*command, "--home", str(home)], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0 and "d7" in done.stdout.splitlines()[0], done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "qdrant_client" not in imported and "numpy" in imported
    assert not imported & {"torch", "transformers", "tokenizers", "datasets"}
