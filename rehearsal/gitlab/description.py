"""Holds requests and answers against GitLab's published OpenAPI description, where it lies beside the project.

The description is not part of the project. It says too little in some places (it forbids no property, requires none)
and is wrong in others; both are put right here before anything is checked, each line with its reason. What GitLab's
code does is the authority.
"""

from __future__ import annotations

import copy
import functools
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml
from openapi_core import OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.testing import MockRequest, MockResponse

UNDESCRIBED = (
    "/api/v4/personal_access_tokens/self",
    "/api/v4/registry/repositories/{repository_id}",
    "/api/v4/projects/{id}/registry/repositories",
    "/api/v4/projects/{id}/registry/repositories/{repository_id}/tags",
    "/api/v4/projects/{id}/registry/repositories/{repository_id}/tags/{tag_name}",
)
"""Served from GitLab's sources alone: the slice of the description that is at hand leaves these out."""

# Any endpoint can answer these; the description lists them for few.
_EVERYWHERE = (400, 401, 403, 404, 409, 429, 500, 501, 502, 503, 504)

# Nulls are common and no property of an answer is marked nullable.
_NULLABLE = {
    "APIEntitiesCiVariable": ("value", "description"),
    "APIEntitiesDeployToken": ("expires_at",),
    "APIEntitiesDeployTokenWithToken": ("expires_at",),
    "APIEntitiesProjectsWithAccessAndCatalogSetting": ("description",),
    "APIEntitiesNamespaceBasic": ("parent_id", "avatar_url"),
    "APIEntitiesProjectAccess": ("notification_level",),
}
# Typed string, and numbers in GitLab's answers.
_NUMBERS = {"APIEntitiesProjectAccess": ("access_level",)}
# Of these the stand-in gives the whole.
_COMPLETE = ("APIEntitiesCiVariable", "APIEntitiesDeployToken", "APIEntitiesDeployTokenWithToken")


class Description:
    """The description, put right."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = _put_right(copy.deepcopy(dict(document)))
        self._openapi = OpenAPI.from_dict(self._document)
        self.lock = threading.Lock()
        """To be held by who asks: several stand-ins of a process share one description."""

    @classmethod
    @functools.cache
    def read(cls, place: Path) -> Description:
        """Read it from a file, once in a process."""
        # The C parser where PyYAML has it: a tenth of the time.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return cls(yaml.load(place.read_text(encoding="utf-8"), Loader=loader))  # noqa: S506 - a safe loader

    def objections(
        self,
        method: str,
        path: str,
        template: str,
        *,
        query: str,
        headers: Mapping[str, str],
        fields: Mapping[str, Any],
        typed: bool,
        status: int,
        answer: bytes,
        answer_type: str,
    ) -> list[str]:
        """Say what the description has against this exchange; never a value, only where and which rule.

        ``path`` is the raw one, ``fields`` the request's body, decoded (empty if there was none), ``typed``
        whether it was JSON: a form has only text. The request of a refused exchange is not looked at: refusing it was
        right.
        """
        if template in UNDESCRIBED:
            return []
        where = f"{method} {template}"
        operation = self._document["paths"].get(template, {}).get(method.lower())
        if operation is None:
            return [f"{where} is not described"]
        found = []
        request = MockRequest(
            "https://gitlab.com",
            method,
            path,
            args=dict(parse_qsl(query, keep_blank_values=True)),
            headers=dict(headers),
            data=json.dumps(fields).encode() if fields or "requestBody" in operation else b"",
        )
        if status < 400:
            if typed:
                found += self._against_request(request, where)
            found += _unknown_fields(operation, fields, self._document, where)
        if status not in {404, 429} | set(range(500, 600)) or answer_type == "application/json":
            response = MockResponse(answer, status, content_type=answer_type)
            try:
                self._openapi.validate_response(request, response)
            except OpenAPIError as error:
                found.append(f"answer {status} of {where}: {_reason(error)}")
        return found

    def _against_request(self, request: MockRequest, where: str) -> list[str]:
        try:
            self._openapi.validate_request(request)
        except OpenAPIError as error:
            return [f"request {where}: {_reason(error)}"]
        return []


def _put_right(document: dict[str, Any]) -> dict[str, Any]:
    paths, schemas = document["paths"], document["components"]["schemas"]
    # Tokens are the server's own business, and openapi-core does not know all of these schemes.
    del document["security"], document["components"]["securitySchemes"]
    variables = "/api/v4/projects/{id}/variables"
    # Described as one object; GitLab answers with an array.
    content = paths[variables]["get"]["responses"]["200"]["content"]["application/json"]
    content["schema"] = {"type": "array", "items": content["schema"]}
    # Described as 200 with the variable; GitLab answers 204 without a body.
    responses = paths[f"{variables}/{{key}}"]["delete"]["responses"]
    del responses["200"]
    responses["204"] = {"description": "No content"}
    for path in paths.values():
        for operation in path.values():
            for status in _EVERYWHERE:
                operation["responses"].setdefault(str(status), {"description": "Trouble"})
    for name, properties in _NULLABLE.items():
        for one in properties:
            if one in schemas[name]["properties"]:
                schemas[name]["properties"][one]["nullable"] = True
    for name, properties in _NUMBERS.items():
        for one in properties:
            schemas[name]["properties"][one]["type"] = "integer"
    for name in _COMPLETE:
        schemas[name]["required"] = sorted(schemas[name]["properties"])
    for schema in schemas.values():
        # A property that GitLab does not have must not be relied on.
        if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
    # Request bodies say what GitLab reads; it ignores the rest. _unknown_fields looks at that, with a better word.
    for name, schema in schemas.items():
        if name.startswith("RequestBody_"):
            schema.pop("additionalProperties", None)
    return document


def _unknown_fields(
    operation: Mapping[str, Any], fields: Mapping[str, Any], document: Mapping[str, Any], where: str
) -> list[str]:
    if "requestBody" not in operation:
        return [f"request {where}: has a body"] if fields else []
    reference = next(iter(operation["requestBody"]["content"].values()))["schema"]["$ref"]
    known = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    return [f"request {where}: GitLab does not know {name}" for name in sorted(set(fields) - set(known))]


def _reason(error: BaseException) -> str:
    """Say why without the value, which the validator's own sentences quote."""
    cause = error.__cause__ or error
    inner = getattr(cause, "schema_errors", None)
    if inner:
        return "; ".join(_rule(one) for one in inner)
    return type(cause).__name__


def _rule(one: Any) -> str:
    if one.validator == "additionalProperties":
        return "has a property that is not described"
    where = "/".join(str(part) for part in one.absolute_path) or "the whole"
    return f"{where} breaks {one.validator}: {one.validator_value}"
