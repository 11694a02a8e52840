"""Data sets: local folders in each form, and what a hub that cannot help is told as."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from epic_search.errors import UserError
from epic_search.index.corpus import Corpus

ROWS = [{"id": n, "text": f"text {n}", "meta": {"tags": ["a", None]}} for n in range(150)]


def read(source: object) -> list:
    with Corpus(str(source)) as corpus:
        return [(d.id, d.text, d.payload, d.place) for d in corpus]


EXPECTED = [(str(r["id"]), r["text"], {"meta": r["meta"]}, f"row {n}") for n, r in enumerate(ROWS, 1)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from datasets import Dataset, DatasetDict

    folder = tmp_path_factory.mktemp("saved")
    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(folder / "one")
    DatasetDict({"train": dataset, "test": dataset.select(range(2))}).save_to_disk(folder / "splits")
    DatasetDict({"a": dataset, "b": dataset}).save_to_disk(folder / "unusual")
    (folder / "files").mkdir()
    (folder / "files" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def test_folders(saved):
    assert read(saved / "one") == read(f"hf:{saved}/one") == EXPECTED
    assert read(saved / "splits") == read(f"hf:{saved}/splits@train") == EXPECTED
    assert read(f"hf:{saved}/splits@test") == EXPECTED[:2]
    assert read(f"hf:{saved}/files") == read(f"hf:{saved}/files:default@train") == EXPECTED


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unusual", r"has several splits; it has a, b: choose with hf:.*/unusual@SPLIT"),
        ("splits@dev", r"has no split 'dev'; it has train, test: choose with hf:.*/splits@SPLIT"),
        ("files:other", "could not be loaded: BuilderConfig 'other' not found. Available: \\['default'\\]"),
    ],
)
def test_what_a_folder_does_not_have(saved, name, said):
    with pytest.raises(UserError, match=said):
        read(f"hf:{saved}/{name}")


@pytest.mark.parametrize("name", ["hf:", "hf::c", "hf:@train"])
def test_no_name(name):
    with pytest.raises(UserError, match="names no data set"):
        read(name)


class _NoSuchRepository(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def from_hub(endpoint: str, tmp_path) -> str:
    """What is said of a data set when the hub is there; the libraries read the address when they are imported."""
    code = (
        "import sys\nfrom epic_search.errors import UserError\nfrom epic_search.index.corpus import Corpus\n"
        "try:\n    list(Corpus('hf:some/thing'))\nexcept UserError as error:\n    print(error)\n"
    )
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return done.stdout


def test_a_data_set_that_does_not_exist(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NoSuchRepository) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        said = from_hub(f"http://127.0.0.1:{hub.server_port}", tmp_path)
        hub.shutdown()
    assert said.startswith("there is no data set 'some/thing' on the Hugging Face hub, or it is private")


def test_no_network(tmp_path):
    said = from_hub("http://127.0.0.1:9", tmp_path)
    assert said.startswith("the data set 'some/thing' could not be loaded: ")
    assert said.endswith("check its name and the network\n")
