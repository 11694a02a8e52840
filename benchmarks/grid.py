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
    show("", scores, "{:.1f}")
    if less:
        show("less", differences(scores, less), "{:+.1f}")


def show(title: str, scores: Scores, form: str) -> None:
    """One table: a row a method, a column a task."""
    tasks = list(next(iter(scores.values())))
    print(f"\n| {title} | {' | '.join(tasks)} | seeds |\n|{'---|' * (len(tasks) + 2)}")
    for method, score_by_task in scores.items():
        cells = [cell(list(score_by_task[task].values()), form) for task in tasks]
        print(f"| {method} | {' | '.join(cells)} | {', '.join(score_by_task[MEAN])} |")


def by_method(results: list[Result]) -> Scores:
    """Scores times 100, means over draws of demonstrations; and their mean over the tasks, of seeds that have all."""
    draws: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for result in results:
        method, dash, seed = result.model.rpartition("-")
        if not dash:
            raise SystemExit(f"the model '{result.model}' is not called METHOD-SEED; leave it out, or call it so")
        draws[result.label.replace(result.model, method, 1), result.task, seed].append(100 * result.score)
    found: Scores = {}
    for (method, task, seed), values in draws.items():
        found.setdefault(method, {}).setdefault(task, {})[seed] = sum(values) / len(values)
    for score_by_task in found.values():
        whole = set.intersection(*(set(score_by_seed) for score_by_seed in score_by_task.values()))
        columns = list(score_by_task.values())
        score_by_task[MEAN] = {seed: sum(column[seed] for column in columns) / len(columns) for seed in sorted(whole)}
    return found


def differences(scores: Scores, wanted: list[str]) -> Scores:
    """What the first of each two has more than the second, by task and seed."""
    found: Scores = {}
    for pair in wanted:
        one, _, other = pair.partition(":")
        if missing := [name for name in (one, other) if name not in scores]:
            raise SystemExit(f"--less {pair}: there is no '{missing[0]}'; there are {', '.join(scores)}")
        found[f"{one} - {other}"] = {
            task: {
                seed: score - scores[other][task][seed]
                for seed, score in of_seed.items()
                if seed in scores[other][task]
            }
            for task, of_seed in scores[one].items()
        }
    return found


def cell(values: list[float], form: str) -> str:
    """The mean, with the least and the largest."""
    if not values:
        return ""
    mean, least, most = (form.format(value) for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"


if __name__ == "__main__":
    typer.run(main)
