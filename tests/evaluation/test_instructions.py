"""Instructions: a task's own sentence comes first, then mteb's, then that of its kind."""

import pytest

from epic_search.evaluation.instructions import instruction_for
from epic_search.evaluation.kinds import KINDS


def test_a_task_has_its_own_sentence():
    own = "Given a scientific claim, retrieve abstracts that support or refute the claim"
    assert instruction_for("scifact", "retrieval") == own
    assert instruction_for("scifact", "retrieval", prompt="another") == own


def test_the_prompt_of_mteb_comes_next():
    assert instruction_for("Unnamed", "sts", prompt="from mteb") == "from mteb"
    assert instruction_for("Unnamed", "retrieval", prompt={"query": "from mteb"}) == "from mteb"


@pytest.mark.parametrize("prompt", [None, "", {"document": "for documents only"}])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_default(kind, prompt):
    sentences = {instruction_for("Unnamed", kind, prompt=prompt) for kind in KINDS}
    assert instruction_for("Unnamed", kind, prompt=prompt) in sentences
    assert len(sentences) == len(KINDS)


def test_every_english_task_of_mteb_has_a_sentence_of_its_own():
    mteb = pytest.importorskip("mteb")
    from epic_search.evaluation.tasks import benchmark_tasks

    defaults = {instruction_for("Unnamed", kind) for kind in KINDS}
    named = {"Given a sentence, retrieve a sentence with the same meaning"}  # of the STS tasks, and of their kind
    for name in ("MTEB(eng, v1)", "MTEB(eng, v2)", "BEIR"):
        assert mteb.get_benchmark(name)
        tasks = benchmark_tasks(name)
        assert [task.name for task in tasks if task.instruction in defaults - named] == []
