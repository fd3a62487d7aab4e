"""The JSON schema of the stack files, made of the settings model, for editors that complete and check while one types.

Pydantic gives the shape (keys, maps, lists, what is required); the words of the README's table (``duration``, ``port``,
``text, or map of text``) say what a value looks like as it is written in YAML, before it is read. Rules between keys,
and what only the program can know (is this a host key?), stay with :mod:`components.settings`, which has the last word.

``python -m components.settings`` writes it to ``docs/stack.schema.json``; a test keeps the two the same.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from .settings import NAMESPACE, Settings

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_MAP_OF_TEXT: Schema = {"type": "object", "additionalProperties": _TEXT}
_LIST_OF_TEXT: Schema = {"type": "array", "items": _TEXT}
_PORT: Schema = {"type": ["integer", "string"], "minimum": 1, "maximum": 65535, "pattern": "^[0-9]{1,5}$"}
_SECURE: Schema = {
    "type": "object",
    "properties": {"secure": {"type": "string", "description": "What Pulumi encrypted."}},
    "required": ["secure"],
    "additionalProperties": False,
}
_MAP_OF_SECURE: Schema = {
    "type": "object",
    # A map that is encrypted as a whole has this one name.
    "properties": {"secure": _TEXT},
    "additionalProperties": {"$ref": "#/definitions/secret"},
}

_SHAPES: dict[str, Schema] = {
    "true or false": {"anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}]},
    "number": {"type": ["number", "string"], "pattern": r"^[0-9]+(\.[0-9]+)?$", "minimum": 0},
    "whole number": {"type": ["integer", "string"], "pattern": "^[0-9]+$", "minimum": 0},
    "port": _PORT,
    "duration": {
        "type": ["number", "string"],
        "minimum": 0,
        "maximum": 86400,
        "pattern": r"^([0-9]+(\.[0-9]+)?|([0-9]+(\.[0-9]+)?(ms|s|m|h))+)$",
    },
    "7 to 40 hexadecimal digits": {"type": "string", "pattern": "^[0-9a-fA-F]{7,40}$"},
    "list of text": _LIST_OF_TEXT,
    "list of text, or text": {"anyOf": [_LIST_OF_TEXT, {"type": "string", "minLength": 1}]},
    "map of text": _MAP_OF_TEXT,
    "name or number": {"type": ["string", "integer"]},
    "`user[:group]`": {"type": ["string", "integer"]},
    "`always`, `unless-stopped`, `on-failure[:n]` or `no`": {
        "anyOf": [
            {"enum": ["always", "unless-stopped", "on-failure", "no", False]},
            {"type": "string", "pattern": "^on-failure:[1-9][0-9]{0,5}$"},
        ]
    },
    "`os/arch[/variant]`": {"type": "string", "pattern": "^[a-z0-9]+/[a-z0-9]+(/[a-z0-9]+)?$"},
    "`type base64`": {"type": "string", "pattern": "^[a-z0-9@.-]+ +[A-Za-z0-9+/]+=*( .*)?$"},
    "one line of authorized_keys": {"type": "string", "minLength": 1},
}
"""What a value of a shape looks like in YAML. Shapes that are not here are text: names, paths, addresses."""

_SECRET_SHAPES: dict[str, Schema] = {
    "text": {"$ref": "#/definitions/secret"},
    "map of text": _MAP_OF_SECURE,
    "text, or map of text": _MAP_OF_SECURE,
}

_SHORT_PORT: Schema = {
    "type": "string",
    "description": "`[address:]published:target[/tcp|/udp]`",
    "pattern": r"^(([0-9.]+|\[[0-9a-fA-F:.]+\]):)?[0-9]{1,5}:[0-9]{1,5}(/(http|https|h2c|tcp|udp))?$",
}
_HOST_NEEDED: Schema = {
    "if": {"properties": {"local": {"enum": [True, "true"]}}, "required": ["local"]},
    "then": {
        "not": {"anyOf": [{"required": [key]} for key in ("host", "port", "user", "hostKey", "jumpHost")]}
    },
    "else": {"required": ["host", "hostKey"]},
}


def stack_file_schema() -> Schema:
    """Return the schema of ``Pulumi.<stack>.yaml`` (JSON Schema, draft 7: what editors know best)."""
    model = Settings.model_json_schema(ref_template="#/definitions/{model}")
    definitions: Schema = {name: _closed(item) for name, item in sorted(model.pop("$defs").items())}
    definitions["secret"] = _SECURE
    definitions["ServerSettings"] |= _HOST_NEEDED
    top = _closed(model)["properties"]
    keys = {f"{NAMESPACE}:{key}": item for key, item in top.items()}
    known = "|".join(re.escape(key) for key in top)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A stack file of Esteira, Pulumi.<stack>.yaml",
        "type": "object",
        "properties": {
            "config": {
                "type": "object",
                "description": f"The settings. Keys of Esteira begin with {NAMESPACE}: and stand in README.md's table.",
                "properties": keys,
                "patternProperties": {
                    # Unknown keys of ours; and keys without a namespace, which are the Pulumi project's.
                    f"^{NAMESPACE}:(?!(?:{known})$)": False,
                    "^[^:]*$": False,
                },
                "anyOf": [{"required": [f"{NAMESPACE}:{key}"]} for key in ("container", "gitlab")],
            },
            "encryptionsalt": {**_TEXT, "description": "Pulumi's: checks the passphrase."},
            "encryptedkey": {
                **_TEXT,
                "description": "Pulumi's: the key of a secrets provider, encrypted by it.",
            },
            "secretsprovider": {**_TEXT, "description": "Pulumi's: what encrypts the secrets."},
            "environment": {"description": "Pulumi's: environments of Pulumi ESC."},
        },
        "additionalProperties": False,
        "definitions": definitions,
    }


def _closed(model: Schema) -> Schema:
    """Return one model's schema: its keys as they are written, and no others."""
    required = set(model.get("required", ()))
    properties: Schema = {}
    for key, item in model["properties"].items():
        if item.get("key", True) is False:
            required.discard(key)
            continue
        if item.get("shown") == "required":
            required.add(key)
        properties[key] = _property(item)
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        found["required"] = sorted(required)
    return found


def _property(item: Schema) -> Schema:
    """Return one key: its value as it is written, with what an editor shows beside it."""
    shape, shown = item["shape"], item["shown"]
    found = copy.deepcopy(_SECRET_SHAPES[shape] if item["secret"] else _written(item, shape))
    description = item["description"]
    if item["secret"]:
        description += " A secret: `pulumi config set --secret` writes it."
    word = re.fullmatch(r"`([^`]*[a-z][^`]*)`", shown or "")  # not a variable, whose name is in capitals
    if word:
        found["default"] = word[1]
    elif shown and not shown.startswith("required"):
        description += f" Default: {shown}."
    elif item.get("default") not in (None, {}, []) and "$ref" not in item:
        found["default"] = item["default"]
    if item["example"] is not None:
        found["examples"] = [item["example"]]
    if "$ref" in found:
        # Draft 7 overlooks what stands beside a $ref.
        found = {"allOf": [{"$ref": found.pop("$ref")}], **found}
    return {"description": description, **found}


def _written(item: Schema, shape: str) -> Schema:
    """Return what pydantic knows of maps, lists and words, and what the table's word says of everything else."""
    if shape == "map":
        return {"$ref": _reference(item)}
    if shape == "list":
        inner = item["items"]["$ref"]
        entry = {"$ref": inner}
        return {
            "type": "array",
            "items": {"anyOf": [_SHORT_PORT, entry]} if inner.endswith("/PortSettings") else entry,
        }
    words = item.get("enum") or next((one["enum"] for one in item.get("anyOf", ()) if "enum" in one), None)
    if words:
        return {"enum": words}
    if shape == "number" and "integer" in {
        item.get("type"),
        *(one.get("type") for one in item.get("anyOf", ())),
    }:
        shape = "whole number"
    return _SHAPES.get(shape, _TEXT)


def _reference(item: Schema) -> str:
    for one in (item, *item.get("anyOf", ()), *item.get("allOf", ())):
        if "$ref" in one:
            return str(one["$ref"])
    raise LookupError(item)


def stack_file_schema_text() -> str:
    """Return the schema as it is kept in ``docs/stack.schema.json``."""
    return json.dumps(stack_file_schema(), indent=2, ensure_ascii=False) + "\n"
