"""`epic-search config`: which options are set without being typed, and by what."""

from typing import Annotated

import typer

from epic_search.cli import console, options, settings
from epic_search.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Show the configuration file and the value of every option.")


@app.command()
def show(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(help="Only the options of this command, as 'indexes list'. Default: all.", show_default=False),
    ] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Leave out what has its default value.")] = False,
    json: options.Json = False,
) -> None:
    """Show the value of each option and where it comes from.

    What is typed wins over an environment variable, that over the file, and
    that over the default. Secrets are not shown.
    """
    found = settings.settings(ctx.find_root().command)
    wanted = tuple(command or ())
    chosen = [setting for setting in found if setting.command[: len(wanted)] == wanted]
    if not chosen:
        names = ", ".join(sorted({" ".join(setting.command) for setting in found}))
        raise UserError(f"{' '.join(wanted)!r} is no command with options; those are {names}")
    values = [value for value in settings.in_force(found) if value.setting in chosen]
    if changed:
        values = [value for value in values if value.source != "default"]
    for variable, near in settings.unknown_variables(found):
        console.note(f"{variable} is set and no option reads it{f'; did you mean {near}?' if near else ''}")
    if json:
        console.print_json(
            [
                {
                    "command": " ".join(value.setting.command),
                    "option": value.setting.key,
                    "value": value.value,
                    "source": value.source,
                    "variable": value.setting.variable,
                }
                for value in values
            ]
        )
        return
    rows = [[" ".join(value.setting.command), value.setting.key, value.value, value.source] for value in values]
    console.print_table(["command", "option", "value", "source"], rows)


@app.command()
def path(json: options.Json = False) -> None:
    """Print the path of the configuration file."""
    file = settings.config_file()
    shown = file or settings.user_file()
    if json:
        console.print_json({"path": str(shown), "exists": file is not None})
        return
    print(console.printable(str(shown)))
    if file is None:
        console.note(f"it is not there yet; ./{settings.FILE} would come before it")
