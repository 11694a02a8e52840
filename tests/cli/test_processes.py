"""Training under torchrun: two processes that one hears as one."""
# ruff: noqa: F811

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_train import recipe  # noqa: F401

REPOSITORY = Path(__file__).parents[2]


def torchrun(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`epic-search ARGUMENTS` in two processes; one that hangs is a failure."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "-m", "epic_search", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_two_processes_sound_like_one(recipe: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path, "train", recipe, "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["encoder"] == "runs/tiny-run/encoder" and result["after"]["pairs"] == 8
    assert done.stderr.count("2 processes share the work of each step") == 1
    assert done.stderr.count("step 2/2 loss ") == 1
    assert len((tmp_path / "runs/tiny-run/log.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("missing", [1, 0], ids=["of-one", "of-both"])
def test_a_mistake_is_told_once(recipe: Path, tmp_path: Path, missing: int) -> None:
    """Also that of a process which is not the first; the others don't wait for it."""
    recipe.write_text(recipe.read_text().replace("pairs.jsonl", "pairs-${RANK}.jsonl"))
    if missing == 1:
        shutil.copy(tmp_path / "pairs.jsonl", tmp_path / "pairs-0.jsonl")
    done = torchrun(tmp_path, "train", recipe, "--device", "cpu")
    assert done.returncode != 0 and not done.stdout
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "no file matches" in error and error.endswith("correct the path")
    assert "exitcode  : 2 " in done.stderr and "exitcode  : 1 " not in done.stderr
    assert "epic_search/" not in done.stderr, "no traceback of ours"
