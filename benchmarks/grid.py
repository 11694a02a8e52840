"""What do the methods of a grid bring over several training seeds? Reads results of `epic-search eval`; no model runs.

    for seed in 7 8 9; do epic-search eval quick --model C-$seed=runs/c-epic-$seed/encoder ... --demos 0,4 \\
        --demos-control shuffled --out results/grid; done
    python benchmarks/grid.py results/grid --less C:A --less C@4:C --less C@4-shuffled:C

Models are called METHOD-SEED. A cell is the mean over the seeds, times 100, with the least and the largest in brackets;
--less ONE:OTHER prints how much more ONE has than OTHER, seed by seed.
"""

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from epic_search.evaluation.results import Result, read_results

Scores = dict[str, dict[str, dict[str, float]]]
"""By method with its condition, as "C@4-shuffled", by task or MEAN, by seed."""
MEAN = "mean"


def main(
    results: Path,
    less: Annotated[list[str] | None, typer.Option(help="ONE:OTHER, methods with their conditions; again.")] = None,
) -> None:
    """Print the tables."""
    scores = by_method(read_results(results))
    tasks = list(next(iter(scores.values())))
    for title, rows in (("", scores), ("less", differences(scores, less or []))):
        print(f"\n| {title} | {' | '.join(tasks)} | seeds |\n|{'---|' * (len(tasks) + 2)}")
        for method, score_by_task in rows.items():
            cells = [cell(list(score_by_task[task].values()), signed=title == "less") for task in tasks]
            print(f"| {method} | {' | '.join(cells)} | {', '.join(score_by_task[MEAN])} |")


def by_method(results: list[Result]) -> Scores:
    """Scores times 100, and their mean over the tasks of each seed that has all of them."""
    found: Scores = defaultdict(lambda: defaultdict(dict))
    for result in results:
        method, seed = result.model.rsplit("-", 1)
        found[result.label.replace(result.model, method, 1)][result.task][seed] = 100 * result.score
    for score_by_task in found.values():
        whole = set.intersection(*(set(score_by_seed) for score_by_seed in score_by_task.values()))
        score_by_task[MEAN] = {
            seed: sum(score_by_seed[seed] for score_by_seed in score_by_task.values()) / len(score_by_task)
            for seed in sorted(whole)
        }
    return found


def differences(scores: Scores, wanted: list[str]) -> Scores:
    """What the first of each two has more than the second, by task and seed."""
    found: Scores = {}
    for pair in wanted:
        one, other = (scores[name] for name in pair.split(":"))
        found[pair.replace(":", " - ")] = {
            task: {seed: one[task][seed] - other[task][seed] for seed in one[task] if seed in other[task]}
            for task in one
        }
    return found


def cell(values: list[float], *, signed: bool) -> str:
    """The mean, with the least and the largest."""
    form = "{:+.1f}" if signed else "{:.1f}"
    mean, least, most = (form.format(value) for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"


if __name__ == "__main__":
    typer.run(main)
