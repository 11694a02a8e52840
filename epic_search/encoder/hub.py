"""Publishing: an export, uploaded to the Hugging Face hub."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from epic_search.encoder.checkpoint import OWN
from epic_search.encoder.config import CONFIG_FILE, EncoderConfig
from epic_search.encoder.export import EXPORT_FILE, Format, export, is_export
from epic_search.encoder.weights import KNOWN, is_hub_id
from epic_search.errors import UserError


def push(reference: str | Path, *, repository: str, private: bool = False, format: Format | None = None) -> str:
    """Upload an encoder to the hub, in a repository made when needed; the address of the commit.

    A folder that `export` wrote goes up as it is, everything else as a new export: of `format`, by default an adapter.
    Raises UserError when the encoder cannot be exported, when others could not load it (it names a local folder), and
    when the hub refuses or cannot be reached.
    """
    if repository.count("/") != 1:
        raise UserError(f"{repository!r} is no repository of the hub; give it as ORG/NAME")
    given = Path(reference).expanduser()
    if is_export(given):
        made = json.loads((given / EXPORT_FILE).read_text(encoding="utf-8"))["format"]
        if format not in (None, made):
            raise UserError(f"{given} is an export of format {made}; leave out --format, or push what it was made from")
        _check_public(given)
        return _upload(given, repository, private=private)
    with TemporaryDirectory() as work:
        folder = export(reference, out=Path(work) / "export", format=format or "adapter").folder
        _check_public(folder)
        return _upload(folder, repository, private=private)


def _check_public(folder: Path) -> None:
    """Raise UserError for a checkpoint whose weights lie in a folder of this machine."""
    if not (folder / CONFIG_FILE).is_file():
        return
    config = EncoderConfig.load(folder)
    for name in [config.backbone, *([config.contextual.encoder] if config.contextual else [])]:
        own = name.startswith(OWN) and (folder / name).is_dir()
        if not (own or name in KNOWN or is_hub_id(name)):
            raise UserError(
                f"'{config.name}' is made from {name}, which others do not have; push it as --format merged"
            )


def _upload(folder: Path, repository: str, *, private: bool) -> str:
    from huggingface_hub import HfApi, errors

    # Of httpx or, with huggingface_hub 2, of httpx2: what it lets through when there is no network.
    network_error = errors.HTTPError  # type: ignore[attr-defined]

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise UserError(f"{repository} exists and is public; choose another name, or leave out --private")
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload an encoder of epic-search"
        )
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"there is no token for the hub to push {repository}; {_LOG_IN}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{repository!r} is no name of a repository; letters, digits and - _ . make one") from error
    except errors.HfHubHTTPError as error:
        raise UserError(_refusal(error.response.status_code, repository, _first_line(error))) from error
    except (network_error, OSError) as error:
        raise UserError(
            f"the hub could not be reached to push {repository} ({_first_line(error)}); check the network "
            "(and that HF_HUB_OFFLINE is not set), and push again"
        ) from error
    return str(commit.commit_url)


_LOG_IN = "run hf auth login, or set HF_TOKEN to a token that may write"


def _refusal(status: int, repository: str, reason: str) -> str:
    owner = repository.partition("/")[0]
    if status == 401:
        return f"the hub does not accept the token to push {repository} (401), or there is none; {_LOG_IN}"
    if status in (403, 404):
        return f"the token may not write to {repository} ({status}); use one of a member of {owner}, or another ORG"
    return f"the hub refused to take {repository} ({status}: {reason}); try again later"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
