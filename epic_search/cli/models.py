"""`epic-search models`: the encoders that come with epic-search, their weights, and publishing others."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from epic_search.cli import console, options
from epic_search.cli.completion import complete_encoder, complete_model
from epic_search.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Show the named encoders and model weights; publish encoders.")

Name = Annotated[str, typer.Argument(help="A name that `models list` shows.", autocompletion=complete_model)]
Encoder = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FOLDER",
        help="A named encoder, a checkpoint folder, or a model folder.",
        autocompletion=complete_encoder,
    ),
]
Format = Literal["merged", "adapter", "sentence-transformers"]
FORMATS = (
    "merged: all weights in one folder; adapter: only what was trained; "
    "sentence-transformers: a folder that SentenceTransformer loads."
)


@app.command("list")
def list_(json: options.Json = False) -> None:
    """List the named encoders and the weights known by name."""
    found = [*_encoders().values(), *_weights().values()]
    if json:
        console.print_json(found)
        return
    rows = [
        [
            model["name"],
            model["kind"],
            "yes" if model["installed"] else "no",
            console.size_text(model["size"]) if model["size"] else "",
            model["description"],
        ]
        for model in found
    ]
    console.print_table(["name", "kind", "installed", "size", "description"], rows, numbers=["size"])
    for model in found:
        if not model["installed"]:
            console.note(f"{model['name']} is fetched from the hub when needed, or install it: {model['install']}")


@app.command(no_args_is_help=True)
def show(name: Name, json: options.Json = False) -> None:
    """Show what is known about one model."""
    model = _find(name)
    if json:
        console.print_json(model)
    else:
        console.print_fields([(field, _text(value)) for field, value in model.items() if value is not None])


@app.command(no_args_is_help=True)
def path(name: Name, json: options.Json = False) -> None:
    """Print the folder of a model, converting or fetching its weights where that is needed."""
    from epic_search.encoder import weights

    model = _find(name)
    folder = Path(model["path"]) if model["kind"] == "encoder" else weights.resolve(name)
    if json:
        console.print_json({"name": name, "path": str(folder)})
    else:
        print(folder)


@app.command(no_args_is_help=True)
def export(
    encoder: Encoder,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", file_okay=False)],
    format: Annotated[Format, typer.Option("--format", "-f", help=FORMATS)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in the folder.")] = False,
    json: options.Json = False,
) -> None:
    """Write an encoder as a folder for others, with a model card."""
    with console.working("exporting"):
        from epic_search.encoder.export import export as write

        made = write(encoder, out=out, format=format, overwrite=overwrite)
    if json:
        console.print_json(
            {
                "name": made.name,
                "format": made.format,
                "path": str(made.folder),
                "size": made.size,
                "source": made.source,
                "fingerprint": made.fingerprint,
            }
        )
        return
    print(f"exported {console.printable(made.name)} ({console.size_text(made.size)}): {made.folder}")
    if made.fingerprint not in (None, made.source):
        console.note("its fingerprint is a new one, so an index that is to use it must be made with it")


@app.command(no_args_is_help=True)
def push(
    encoder: Encoder,
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            "-f",
            help="Default: adapter; an export goes up as it is.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Upload an encoder to the Hugging Face hub."""
    with console.working("uploading"):
        from epic_search.encoder.hub import push as upload

        address = upload(encoder, repository=repository, private=private, format=format)
    if json:
        console.print_json({"repository": repository, "url": address})
    else:
        print(address)


def _find(name: str) -> dict[str, Any]:
    models = _encoders() | _weights()
    if name not in models:
        raise UserError(f"no model is named {name!r}; the names are {', '.join(models)}")
    return models[name]


def _encoders() -> dict[str, dict[str, Any]]:
    """The named encoders: name -> what a person or a script may want to know."""
    from epic_search.encoder.checkpoint import registry
    from epic_search.encoder.config import EncoderConfig

    found = {}
    for name, folder in registry().items():
        config = EncoderConfig.load(folder)
        contextual = config.contextual.encoder if config.contextual else None
        layers = "all layers" if config.layers is None else f"first {config.layers} layers"
        found[name] = {
            "name": name,
            "kind": "encoder",
            "installed": True,
            "path": str(folder),
            "size": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            "description": f"{config.backbone}, {layers}"
            + (f", Contextual token from {contextual}" if contextual else ""),
            "backbone": config.backbone,
            "layers": config.layers,
            "contextual": contextual,
            "max_length": config.max_length,
            "pooling": config.pooling,
        }
    return found


def _weights() -> dict[str, dict[str, Any]]:
    """The weights known by name, installed or not."""
    from epic_search.encoder.weights import KNOWN, installed

    found = {}
    for name, known in KNOWN.items():
        file = installed(known)
        found[name] = {
            "name": name,
            "kind": "weights",
            "installed": file is not None,
            "path": str(file) if file else None,
            "size": file.stat().st_size if file else None,
            "description": f"{known.hub_id} ({known.licence})",
            "hub_id": known.hub_id,
            "licence": known.licence,
            "package": f"{known.package}=={known.version}",
            "sha256": known.sha256,
            "install": known.install,
        }
    return found


def _text(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
