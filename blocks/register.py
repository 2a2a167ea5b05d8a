"""Register the block types, and save the blocks of one or more facility files.

    python blocks/register.py blocks/local.yaml blocks/perlmutter.yaml [--overwrite]

A file holds one facility or beamline: `name`, and `backend` (fields of PsikBackend), `collections` (fields of
GlobusCollection by the block's name) or both; optionally `variables` (Prefect Variables, which are set only if
they do not exist yet: operators edit them in Prefect's UI). `${NAME}` is replaced by this machine's environment
variable; `$NAME` is left to the facility. Do not write a login here: save a Globus Credentials block in Prefect's
UI, and name it as `credentials`. Nothing is saved unless all files are valid.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.variables import Variable
from pydantic import BaseModel, ValidationError

from prefect_psik import BackendAttributes, GlobusCollection, GlobusCredentials, PsikBackend, ResourceSpec
from prefect_psik.flow_run.load import load_backend
from prefect_psik.spec.spelling import plain_values, read_yaml
from prefect_psik.spec.strict import explain, kind_of

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_NESTED: dict[str, type[BaseModel]] = {"attributes": BackendAttributes, "default_resources": ResourceSpec}

B = TypeVar("B", bound=Block)


class BadFile(Exception):
    """A facility file cannot be used; the message says why, where, and what to do."""


def read_file(path: Path) -> tuple[list[tuple[str, Block]], dict[str, Any]]:
    """Read the blocks of one facility file, by name, and its variables; saves nothing.

    Raises:
        BadFile: The file cannot be used.
    """
    try:
        document = read_yaml(path)
    except OSError as err:
        raise BadFile(f"Cannot read {path}: {err}.") from None
    except ValueError as err:
        raise BadFile(f"{path} is not valid YAML: {err}.") from None
    document = _expanded(_mapping(document, f"{path}"), path)
    _known(document, ["name", "backend", "collections", "variables"], f"{path}")
    if "name" not in document:
        raise BadFile(f"{path} has no 'name:'. Add one, as in blocks/local.yaml.")
    if not document.keys() & {"backend", "collections"}:
        raise BadFile(f"{path} has neither 'backend:' nor 'collections:'. Add one, as in blocks/local.yaml.")
    found: list[tuple[str, Block]] = []
    if "backend" in document:
        found.append(_block(PsikBackend, document["name"], document["backend"], path))
    collections = _mapping(document.get("collections") or {}, f"'collections' of {path}")
    found += [_block(GlobusCollection, name, fields, path) for name, fields in collections.items()]
    return found, plain_values(_mapping(document.get("variables") or {}, f"'variables' of {path}"))


def _expanded(value: Any, path: Path) -> Any:
    """Replace `${NAME}` in all strings."""
    if isinstance(value, dict):
        return {key: _expanded(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, path) for item in value]
    if not isinstance(value, str):
        return value
    for name in _REFERENCE.findall(value):
        if not os.environ.get(name):
            raise BadFile(
                f"The environment variable {name} is not set, and {path} needs it. Set it: export {name}=…"
            )
    return type(value)(_REFERENCE.sub(lambda match: os.environ[match[1]], value))


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadFile(f"{what} holds {kind_of(value)}, not a mapping of fields.")
    return value


def _known(fields: dict[str, Any], known: Iterable[str], where: str) -> None:
    # Stored models are lenient, so that versions can meet; what a person typed is checked here.
    if unknown := [str(name) for name in fields if name not in (known := list(known))]:
        raise BadFile(f"{where} has unknown field {', '.join(unknown)}. Known fields: {', '.join(known)}.")


def _block(kind: type[B], name: Any, fields: Any, path: Path) -> tuple[str, B]:
    where = f"{kind.get_block_type_slug()} {name!r} in {path}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadFile(f"{name!r} in {path} is not a valid block name: use lower-case letters, digits and dashes.")
    fields = dict(_mapping(fields, where))
    _known(fields, kind.model_fields, where)
    for nested, model in _NESTED.items() if kind is PsikBackend else ():
        if fields.get(nested) is not None:
            what = f"'{nested}' of {where}"
            _known(_mapping(fields[nested], what), model.model_fields, what)
    if fields.get("credentials") is not None:
        fields["credentials"] = _credentials(fields["credentials"], where)
    if "user_endpoint_config" in fields:  # for the endpoint's template, with values of any type
        fields["user_endpoint_config"] = plain_values(fields["user_endpoint_config"])
    try:
        return str(name), kind.model_validate(fields)
    except ValidationError as err:
        raise BadFile(f"{where} is not usable: {explain(err)}.") from None


def _credentials(name: Any, where: str) -> GlobusCredentials:
    if not isinstance(name, str):
        raise BadFile(
            f"'credentials' of {where} must be the name of a saved Globus Credentials block, since no secret "
            "belongs in a file. Save the block in Prefect's UI first."
        )
    try:
        found = GlobusCredentials.load(name)
    except ValueError:
        raise BadFile(
            f"There is no block globus-credentials/{name}, which {where} refers to. Save it in Prefect's UI first."
        ) from None
    assert isinstance(found, GlobusCredentials)  # noqa: S101 - Block.load is typed for both worlds
    return found


def _keep_closed(name: str, block: Block) -> None:
    """If operators have closed a backend, keep it closed, whatever the file says."""
    if isinstance(block, PsikBackend) and _exists(block.get_block_type_slug(), name):
        saved = load_backend(name)
        if not saved.accept_jobs:
            block.accept_jobs, block.note = saved.accept_jobs, saved.note


def set_variables(variables: dict[str, Any]) -> None:
    """Set the variables that do not exist yet."""
    for name, value in variables.items():
        if Variable.get(name) is None:
            Variable.set(name, value)
            print(f"set variable {name}")  # noqa: T201


def save(blocks: list[tuple[str, Block]], *, overwrite: bool) -> None:
    """Register the block types and save the blocks; saves nothing if a name is taken.

    Raises:
        BadFile: A name occurs twice, or is taken and `overwrite` is off.
    """
    names = [(block.get_block_type_slug(), name) for name, block in blocks]
    if twice := [f"{slug}/{name}" for slug, name in names if names.count((slug, name)) > 1]:
        raise BadFile(f"The block {twice[0]} is defined twice in these files. Give each facility its own name.")
    if not overwrite and (taken := [f"{slug}/{name}" for slug, name in names if _exists(slug, name)]):
        raise BadFile(
            f"Nothing was saved, because these blocks already exist: {', '.join(taken)}. Use --overwrite to "
            "replace them."
        )
    for kind in (GlobusCredentials, PsikBackend, GlobusCollection):
        kind.register_type_and_schema()
    for name, block in blocks:
        _keep_closed(name, block)
        block.save(name, overwrite=overwrite)
        print(f"saved {block.get_block_type_slug()}/{name}")  # noqa: T201


def _exists(slug: str, name: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_block_document_by_name(name, slug)
        except ObjectNotFound:
            return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Register block types and save the blocks of facility files.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--overwrite", action="store_true", help="replace existing blocks of the same name")
    options = parser.parse_args(arguments)
    try:
        files = [read_file(path) for path in options.files]
        save([block for blocks, _ in files for block in blocks], overwrite=options.overwrite)
        for _, variables in files:
            set_variables(variables)
    except BadFile as err:
        print(err, file=sys.stderr)  # noqa: T201
        return 2
    except httpx.HTTPError as err:
        print(f"Prefect's API does not answer: {err}. Check PREFECT_API_URL.", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
