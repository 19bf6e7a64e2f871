"""Read configurations: YAML files of a user's own, those that come with the package, and tuned defaults of tasks.

Numbers and words are read as in YAML 1.2: 5e-4 is a number; 1:30, yes, no and 010 are text, which YAML 1.1 takes
for 90, true, false and 8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from cet_rl.runs.config import RunConfig, types_of
from cet_rl.runs.values import checked, unknown
from cet_rl.traces.registry import traces_with

_NO_YAML = (yaml.YAMLError, RecursionError, ValueError, KeyError, IndexError, TypeError, AttributeError)
"""The exceptions of PyYAML for text that is no YAML, and for tags with values that do not fit."""

_NOTATION = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": ("<<", "<"),
}
"""Patterns of the values that are not text, and the characters that these can begin with."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Load plain data only, several times as fast where libyaml is, with the notation above, and no key twice."""

    yaml_implicit_resolvers: ClassVar[Any] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                raise yaml.MarkedYAMLError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Dump plain data only, and quote text that our notation or that of YAML 1.1 would read as something else."""


for _tag, (_pattern, _first) in _NOTATION.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def load_yaml(text: str | bytes) -> Any:
    """Return the plain data in YAML text; raise `yaml.YAMLError` for text that is no YAML."""
    return yaml.load(text, Loader=_Loader)


def dump_yaml(data: Any, **options: Any) -> str:
    """Return plain data as YAML text, keys in their order, with options of `yaml.dump`."""
    return str(yaml.dump(data, Dumper=_Dumper, **{"sort_keys": False, "allow_unicode": True, **options}))


def package_configs() -> dict[str, Traversable]:
    """Return the configuration files that come with the package, by name."""
    folder = resources.files("cet_rl") / "configs"
    return {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}


@cache
def tuned_defaults(task: str, kind: type[RunConfig]) -> Mapping[str, Any]:
    """Return the tuned defaults of a task, or of its namespace (MinAtar/…); empty if there are none."""
    folder = resources.files("cet_rl") / "configs" / "tuned"
    for name in (task.replace("/", "-"), task.split("/")[0]):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return check_values(_parse_mapping(path.read_bytes(), path.name), path.name, kind)
    return {}


def read_mapping(source: str) -> Mapping[str, Any]:
    """Return the contents of a configuration file, by path or name, in which only the task has been checked.

    Raises ValueError if there is no such file, or it is no mapping.
    """
    path: Traversable = Path(source)
    if not path.is_file():
        known = package_configs()
        if source not in known:
            hint = "there is no such file, and `cet-rl list configs` shows those that come with the package"
            raise unknown("configuration file", source, known, hint)
        path = known[source]
    mapping = _parse_mapping(path.read_bytes(), source)
    if "task" in mapping:
        checked(mapping["task"], str, f"{source}: task")
    return mapping


def check_values(mapping: Mapping[str, Any], source: str, kind: type[RunConfig]) -> dict[str, Any]:
    """Return values with the types of the fields of `kind`; raise ValueError for others, naming source and key."""
    types, values = types_of(kind), {}
    for key, value in mapping.items():
        if key not in types:
            raise unknown_key(source, key, types)
        values[key] = checked(value, types[key], f"{source}: {key}")
    return values


def unknown_key(source: str, key: str, known: Iterable[str]) -> ValueError:
    """Return the error for a key that a file may not have: an option of traces, or a name that does not exist."""
    if traces_with(key):
        return ValueError(f"{source}: {key} is an option of traces: write trace_options: [{key}=VALUE]")
    return unknown(f"{source}: unknown key", key, known)


def _parse_mapping(text: bytes, source: str) -> Mapping[str, Any]:
    try:
        data = load_yaml(text.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{source} is no UTF-8 text") from None
    except _NO_YAML as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}: {getattr(error, 'problem', None)}" if place else ""
        raise ValueError(f"{source} is no valid YAML{where}") from None
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ValueError(f"{source} must hold a mapping of keys to values")
    return data
