"""Reads YAML and keeps the spelling of each scalar, so that the field it is for decides what it means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from prefect_psik.spec.strict import Plain

#: Size limit of one file. A job's script and input files have limits of their own.
MAX_BYTES = 10_000_000
#: Limit of one document; each alias counts as what it stands for.
MAX_VALUES = 100_000
MAX_DEPTH = 50

_NULL, _STRING = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """Understands text, empty values and merge keys; counts the values it reads, with aliases expanded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[yaml.Node, tuple[int, int]] = {}
        self._depth = self._composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        self._composed += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if not is_alias:
            self._sizes[node] = self._size(node)
        elif node not in self._sizes:
            raise yaml.YAMLError("a value contains itself, through an alias (*name)")
        values, characters = self._sizes[node]
        if max(values, self._composed) > MAX_VALUES or characters > MAX_BYTES:
            raise yaml.YAMLError(
                f"with its aliases (*name) expanded, it has more than {MAX_VALUES:,} values or {MAX_BYTES:,} "
                "characters"
            )
        return node

    def _size(self, node: yaml.Node) -> tuple[int, int]:
        """Values and characters of a node whose parts are already measured."""
        if isinstance(node, yaml.ScalarNode):
            return 1, len(node.value)
        is_mapping = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if is_mapping else node.value
        sizes = [self._sizes[part] for part in parts]
        return 1 + sum(size[0] for size in sizes), sum(size[1] for size in sizes)

    def text(self, node: yaml.Node) -> str:
        """A quoted scalar as text, any other one as it is spelled in the file."""
        assert isinstance(node, yaml.ScalarNode)  # noqa: S101 - PyYAML calls this for scalars only
        return Plain(node.value) if node.style is None else str(node.value)


_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [pair for pair in resolvers if pair[0] in (_NULL, "tag:yaml.org,2002:merge")])
}
_Loader.add_constructor(_STRING, _Loader.text)


def read_yaml(path: Path) -> Any:
    """Read one YAML (or JSON) document; unquoted scalars become `Plain`, except empty values.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not YAML, or too large; says which.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    try:
        loader = _Loader(content.decode())
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as err:
        raise ValueError(str(err)) from None


def plain_values(value: Any) -> Any:
    """Numbers and booleans as JSON spells them, anything else as text: for fields of any type."""
    if isinstance(value, dict):
        return {str(name): plain_values(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain_values(item) for item in value]
    if not isinstance(value, Plain):
        return value
    try:
        found = json.loads(value, parse_constant=str)
    except ValueError:
        return str(value)
    return found if isinstance(found, bool | int | float) else str(value)
