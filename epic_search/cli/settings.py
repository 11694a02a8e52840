"""Options that were not typed: from the environment, then from a configuration file, then the default.

Every option of every command has a variable, EPIC_SEARCH_COMMAND_OPTION (`EPIC_SEARCH_QUERY_TOP`), and a place in the
file: `top` in the table `[query]`. Options that mean the same everywhere (`EPIC_SEARCH_HOME`) have one variable for all
commands besides, and may stand at the top of the file, before any table. The more special one wins.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from epic_search.errors import UserError

PREFIX = "EPIC_SEARCH"
FILE = "epic-search.toml"
UNTOLD = ("help", "version", "install-completion", "show-completion")  # they answer at once and set nothing
SECRETS = ("key", "token", "password")
TRUSTED = ("url", "api-key", "token")  # not from a file that came along with the folder one works in


@dataclass(frozen=True, slots=True)
class Setting:
    """An option of a command. `path` leads to the command in the tree of verbs, `command` is what people type."""

    path: tuple[str, ...]
    command: tuple[str, ...]
    key: str
    option: Any

    @property
    def variable(self) -> str:
        """The environment variable of this option alone."""
        return "_".join((PREFIX, *self.command, self.key)).upper().replace("-", "_")

    @property
    def variables(self) -> list[str]:
        """All variables that set it, the one that wins first."""
        shared = self.option.envvar or []
        return list(dict.fromkeys([self.variable, *([shared] if isinstance(shared, str) else shared)]))

    @property
    def is_secret(self) -> bool:
        """Whether its value is not for showing."""
        return self.key.split("-")[-1] in SECRETS


@dataclass(frozen=True, slots=True)
class InForce:
    """A setting's value, as one would type it, and where it comes from: a variable, a file or "default"."""

    setting: Setting
    value: str
    source: str


def apply(root: Any, ctx: Any) -> None:
    """Give the commands under `root` what environment and file say; raises UserError for a file with a mistake."""
    found = settings(root)
    for setting in found:
        if os.environ.get(setting.variable):
            setting.option.envvar = setting.variable
    ctx.default_map = _tree(read_file(found))


def say_origin(error: Any) -> None:
    """Add to an option's refusal which variable or file holds the value, where it was not typed."""
    if error.ctx is None or error.param is None:
        return
    source = error.ctx.get_parameter_source(error.param.name)
    match source.name if source is not None else "":
        case "ENVIRONMENT":
            error.message += f" (from {error.param.envvar})"
        case "DEFAULT_MAP":
            error.message += f" (from {config_file()})"


def config_file() -> Path | None:
    """The configuration file in force; raises UserError where EPIC_SEARCH_CONFIG names none."""
    if named := os.environ.get(f"{PREFIX}_CONFIG"):
        path = Path(named).expanduser()
        if not path.exists() or path.is_dir():
            raise UserError(f"{PREFIX}_CONFIG names {path}, which is no file; write it, or unset the variable")
        return path
    return next((path for path in (Path(FILE), user_file()) if path.is_file()), None)


def user_file() -> Path:
    """Where a user's own configuration file lies, if there is one."""
    shared = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    # The XDG rules say that a relative path is to be ignored.
    return (shared if shared.is_absolute() else Path.home() / ".config") / "epic-search" / "config.toml"


def settings(root: Any) -> list[Setting]:
    """Every option under `root`, a group of commands as typer builds it."""
    return list(_walk(root, (), ()))


def in_force(found: list[Setting]) -> list[InForce]:
    """The value of each of these settings, and where it comes from."""
    file = config_file()
    in_file = read_file(found)
    values = []
    for setting in found:
        variable = next((name for name in setting.variables if os.environ.get(name)), None)
        value: object = os.environ[variable] if variable else in_file.get(_place(setting))
        source = variable or str(file)
        if value is None:
            value, source = setting.option.default, "default"
        values.append(InForce(setting, "(set)" if setting.is_secret and value else _shown(value), source))
    return values


def unknown_variables(found: list[Setting]) -> Iterator[tuple[str, str | None]]:
    """Variables that look like those of options and are none, each with the nearest that is one."""
    known = {name for setting in found for name in setting.variables}
    commands = tuple({"_".join((PREFIX, *setting.command, "")).upper() for setting in found})
    for name in sorted(os.environ):
        if name.startswith(commands) and name not in known:
            yield name, next(iter(get_close_matches(name, known, n=1)), None)


def read_file(found: list[Setting]) -> dict[tuple[tuple[str, ...], str], Any]:
    """What the configuration file says: (path of the command, name of the parameter) -> value.

    Raises UserError naming the file, the key and what is allowed there.
    """
    path = config_file()
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}; correct it, or move it away") from error
    return _Reading(path, found).values(content)


class _Reading:
    """A configuration file's content, held against the options that there are."""

    def __init__(self, path: Path, found: list[Setting]) -> None:
        self.path = path
        self.tables: dict[tuple[str, ...], dict[str, Setting]] = {}
        for setting in found:
            self.tables.setdefault(setting.command, {})[setting.key] = setting
            for length in range(len(setting.command)):
                self.tables.setdefault(setting.command[:length], {})
        verbs = {command[0] for command in self.tables if command}
        self.shared: dict[str, list[Setting]] = {}
        for setting in found:
            for variable in setting.variables[1:]:
                key = variable.removeprefix(f"{PREFIX}_").lower().replace("_", "-")
                if key not in verbs:
                    self.shared.setdefault(key, []).append(setting)

    def values(self, content: Mapping[str, Any]) -> dict[tuple[tuple[str, ...], str], Any]:
        """All of the file; what stands in a table wins over what stands at the top."""
        top = {_place(setting): value for setting, value in self._shared(content)}
        return top | {_place(setting): value for setting, value in self._table((), content)}

    def _shared(self, content: Mapping[str, Any]) -> Iterator[tuple[Setting, Any]]:
        for key, value in content.items():
            for setting in self.shared.get(_dashed(key), ()):
                yield setting, self._typed(key, value, setting)

    def _table(self, command: tuple[str, ...], content: Mapping[str, Any]) -> Iterator[tuple[Setting, Any]]:
        for key, value in content.items():
            inner = (*command, key)
            if setting := self.tables[command].get(_dashed(key)):
                yield setting, self._typed(".".join(inner), value, setting)
            elif inner in self.tables:
                if not isinstance(value, dict):
                    name = ".".join(inner)
                    raise UserError(f"{self.path}: {name} is a command; write its options in a table [{name}]")
                yield from self._table(inner, value)
            elif command or _dashed(key) not in self.shared:
                raise self._unknown(command, key)

    def _unknown(self, command: tuple[str, ...], key: str) -> UserError:
        tables = [name[-1] for name in self.tables if len(name) == len(command) + 1 and name[:-1] == command]
        allowed = [*self.tables[command], *([] if command else self.shared), *tables]
        near = get_close_matches(_dashed(key), allowed, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        where = f"in [{'.'.join(command)}]" if command else "at the top"
        return UserError(f"{self.path}: there is no '{key}' {where}; {hint}allowed are {', '.join(sorted(allowed))}")

    def _typed(self, key: str, value: object, setting: Setting) -> Any:
        """The value as it would be typed, for typer to read and to check."""
        option = setting.option
        if setting.key in TRUSTED and self.path == Path(FILE):
            raise UserError(
                f"{self.path}: {key} decides who gets your key, and a file in the current folder may come with "
                f"somebody else's data; write it in {user_file()}, or set {setting.variables[-1]}"
            )
        if getattr(option, "is_flag", False):
            if not isinstance(value, bool):
                raise UserError(f"{self.path}: {key} is {_shown(value)!r}; it must be true or false")
            return value
        if option.multiple:
            values = value if isinstance(value, list) else [value]
            return [self._scalar(key, item) for item in values]
        return self._scalar(key, value)

    def _scalar(self, key: str, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f"{self.path}: {key} is {_shown(value)!r}; it must be a text or a number")
        return str(value)


def _walk(group: Any, path: tuple[str, ...], command: tuple[str, ...]) -> Iterator[Setting]:
    for name, verb in group.commands.items():
        if path or name != "config":
            is_default = getattr(group, "has_default_verb", False) and verb is next(iter(group.commands.values()))
            typed = command if is_default else (*command, name)
            if hasattr(verb, "commands"):
                yield from _walk(verb, (*path, name), typed)
                continue
            for option in verb.params:
                key = max(option.opts, key=len).lstrip("-")
                if option.param_type_name == "option" and key not in UNTOLD:
                    yield Setting((*path, name), typed, key, option)


def _place(setting: Setting) -> tuple[tuple[str, ...], str]:
    return setting.path, setting.option.name


def _tree(values: Mapping[tuple[tuple[str, ...], str], Any]) -> dict[str, Any]:
    """The values as click wants defaults: a dictionary a command, nested as the commands are."""
    tree: dict[str, Any] = {}
    for (path, name), value in values.items():
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
    return tree


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case list() | tuple():
            return " ".join(_shown(item) for item in value)
        case _:
            return str(value)
