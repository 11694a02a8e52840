"""The `epic-search` command: collects the verbs. Nothing here imports torch, so that --help stays fast."""

import sys
from typing import Annotated

import typer

from epic_search import __version__
from epic_search.cli import config, indexes, models, teach, train
from epic_search.cli import eval as evaluation
from epic_search.cli.console import VerbGroup
from epic_search.cli.demo import demo
from epic_search.cli.doctor import doctor
from epic_search.cli.index import index
from epic_search.cli.mcp import mcp
from epic_search.cli.query import query
from epic_search.cli.serve import serve

EPILOG = """\
Exit codes: 0 done; 1 something that was looked at is not in order (a damaged index, a task that failed), or a bug;
2 a mistake in what was given, said in one sentence (a corpus of which no row can be used is one, too); 130 interrupted;
141 the reader of the output went away.

Every option can come from a variable, EPIC_SEARCH_COMMAND_OPTION, or from epic-search.toml: see epic-search config.
"""

app = typer.Typer(
    name="epic-search",
    cls=VerbGroup,
    no_args_is_help=True,
    help="Search your documents with a language model that learns the task from a few example pairs.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"epic-search {__version__}")
        raise typer.Exit


@app.callback()
def _epic_search(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


app.command(no_args_is_help=True)(index)
app.command()(query)
app.add_typer(teach.app, name="teach")
app.command()(serve)
app.command()(mcp)
app.command()(demo)
app.command()(doctor)
app.add_typer(evaluation.app, name="eval")
app.add_typer(train.app, name="train")
app.add_typer(indexes.app, name="indexes")
app.add_typer(models.app, name="models")
app.add_typer(config.app, name="config")


def main() -> None:
    """Entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        # A document may hold characters that the terminal's encoding lacks; that is no reason to stop.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app(prog_name="epic-search")
