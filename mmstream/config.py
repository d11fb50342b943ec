"""A frozen, typed base for everything that a person writes: from YAML, with overrides, with a fingerprint.

A config class stands beside the class it builds. An unknown key, a missing one and a wrong value are one sentence
each, a `UsageError` that names the key, and for an unknown key the nearest valid one. YAML is read by the safe loader.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mmstream.errors import UsageError


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_yaml(cls, text: str, overrides: Sequence[str] = (), *, where: str = "recipe") -> Self:
        """`text` is a YAML mapping, `overrides` are `key=value` with dots (`optim.learning_rate=1e-3`), YAML values.

        Raises:
            UsageError: not YAML, not a mapping, an unknown key, or a value that does not fit; names `where` and key.
        """
        return cls.checked(overridden(_mapping(text, where), overrides), where=where)

    @classmethod
    def checked(cls, values: dict[str, Any], *, where: str = "recipe") -> Self:
        """
        Raises:
            UsageError: an unknown key or a value that does not fit; names `where` and the key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as e:
            raise UsageError(f"{where}: {_explained(cls, e)}") from e

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def fingerprint(self, *, apart: frozenset[str] = frozenset()) -> str:
        """SHA-256 over all values but the top keys in `apart`, in canonical JSON."""
        values = self.model_dump(mode="json", exclude=set(apart))
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UsageError(f"{where}: not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(values, dict):
        raise UsageError(f"{where}: holds no keys; a recipe is a YAML mapping such as `epochs: 7`.")
    return values


def overridden(
    values: dict[str, Any], overrides: Sequence[str], *, option: str = "override", known: Sequence[str] = ()
) -> dict[str, Any]:
    """A copy of nested `values` with each `a.b=value` set.

    Args:
        option: what messages call an override, such as `--filter`.
        known: the keys that there are, where they are few and have no dots.

    Raises:
        UsageError: an override is not `key=value`, or goes below a key that holds a plain value.
    """
    result = json.loads(json.dumps(values))
    for override in overrides:
        path, equals, value = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            there = f"one of {', '.join(known)}" if known else "with dots below the top (optim.warmup=0.1)"
            raise UsageError(f"{option} {override!r}: write key=value, {there}.")
        at = result
        for key in keys[:-1]:
            at = at.setdefault(key, {})
            if not isinstance(at, dict):
                raise UsageError(f"{option} {override!r}: {key} holds a plain value, nothing is below it.")
        try:
            at[keys[-1]] = yaml.safe_load(value)
        except yaml.YAMLError:
            at[keys[-1]] = value  # a pattern such as *.tar or {0..3}.tar, which YAML takes for something of its own
    return result


def _explained(cls: type[BaseModel], error: ValidationError) -> str:
    """One sentence for the first problem; unknown keys come first, since they explain the missing ones."""
    problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; the nearest valid key is {nearest(key, list(_keys(cls)))!r}."
    if problem["type"] == "missing":
        return f"the key {key!r} is missing; give it in the file or as {key}=VALUE."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key or 'the whole'}: {message} (got {str(problem['input'])[:80]!r})."


def nearest(name: str, choices: Sequence[str]) -> str:
    """The choice that is spelled most like `name`, dotted keys by their whole or by their last part."""

    def likeness(choice: str) -> float:
        whole = difflib.SequenceMatcher(None, name, choice).ratio()
        last = difflib.SequenceMatcher(None, name.rsplit(".")[-1], choice.rsplit(".")[-1]).ratio()
        return max(whole, 0.95 * last)

    return max(choices, key=likeness)


def _keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")
