# ruff: noqa: N802 - gRPC's names
"""A plugin for the engine in the place of pulumi-gitlab's, with the two resources that the program declares.

The real one cannot be had everywhere, and what is looked at is the engine's: in which order it makes and deletes, what
it keeps in its state. As in the real one, secrets are not passed to it (the engine marks what comes back under the same
names), key, scope, project and hidden of a variable and all of a deploy token force a replacement, and a variable's id
is ``project:key:scope``.
"""

from __future__ import annotations

import os
import sys
from concurrent import futures
from typing import Any

import gitlab
import grpc  # type: ignore[import-untyped]
from google.protobuf import empty_pb2, struct_pb2  # type: ignore[import-untyped]
from pulumi.runtime import rpc
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

VARIABLE = "gitlab:index/projectVariable:ProjectVariable"
REPLACES = {"key", "environmentScope", "project", "hidden", "name", "scopes", "expiresAt", "username"}
FIELDS = {
    "value": "value",
    "protected": "protected",
    "masked": "masked",
    "raw": "raw",
    "variableType": "variable_type",
    "description": "description",
}


class Plugin(provider_pb2_grpc.ResourceProviderServicer):
    """What the engine asks of a plugin."""

    def __init__(self) -> None:
        self.api = gitlab.Gitlab("http://not-configured.invalid")

    def GetPluginInfo(self, _request: Any, _context: Any) -> Any:
        return plugin_pb2.PluginInfo(version="10.4.0")

    def CheckConfig(self, request: Any, _context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, _request: Any, _context: Any) -> Any:
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, _context: Any) -> Any:
        given = _read(request.args)
        self.api = gitlab.Gitlab(
            given["baseUrl"].removesuffix("/api/v4/"),
            oauth_token=given.get("token") or os.environ["GITLAB_TOKEN"],
            keep_base_url=True,
        )
        return provider_pb2.ConfigureResponse(acceptSecrets=False, supportsPreview=True)

    def Check(self, request: Any, _context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def Diff(self, request: Any, _context: Any) -> Any:
        old, new = _read(request.old_inputs), _read(request.news)
        changed = [
            name
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and name not in request.ignoreChanges
        ]
        kinds = provider_pb2.DiffResponse
        return provider_pb2.DiffResponse(
            changes=kinds.DIFF_SOME if changed else kinds.DIFF_NONE,
            replaces=[name for name in changed if name in REPLACES],
            diffs=changed,
        )

    def Create(self, request: Any, context: Any) -> Any:
        inputs = _read(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=request.properties)
        project = self.api.projects.get(inputs["project"], lazy=True)
        try:
            if _kind(request) == VARIABLE:
                data = {field: inputs[name] for name, field in FIELDS.items() if name in inputs}
                if inputs.get("hidden"):
                    del data["masked"]
                    data["masked_and_hidden"] = True
                scope = inputs.get("environmentScope", "*")
                project.variables.create({"key": inputs["key"], "environment_scope": scope, **data})
                return _created(f"{inputs['project']}:{inputs['key']}:{scope}", inputs)
            data = {"name": inputs["name"], "scopes": inputs["scopes"]}
            if "expiresAt" in inputs:
                data["expires_at"] = inputs["expiresAt"]
            made = project.deploytokens.create(data)
        except gitlab.GitlabError as error:
            context.abort(grpc.StatusCode.UNKNOWN, f"{error.response_code} {error.error_message}")
        outputs = {**inputs, "username": made.username, "token": made.token}
        return _created(f"{inputs['project']}:{made.id}", outputs)

    def Update(self, request: Any, _context: Any) -> Any:
        inputs = _read(request.news)
        if not request.preview:
            project = self.api.projects.get(inputs["project"], lazy=True)
            data = {field: inputs.get(name) for name, field in FIELDS.items()}
            project.variables.update(
                inputs["key"], data, filter={"environment_scope": inputs.get("environmentScope", "*")}
            )
        return provider_pb2.UpdateResponse(properties=request.news)

    def Delete(self, request: Any, _context: Any) -> Any:
        project, _, rest = request.id.partition(":")
        of = self.api.projects.get(project, lazy=True)
        if _kind(request) == VARIABLE:
            key, _, scope = rest.partition(":")
            of.variables.delete(key, filter={"environment_scope": scope})
        else:
            of.deploytokens.delete(int(rest))
        return empty_pb2.Empty()

    def Read(self, request: Any, _context: Any) -> Any:
        project, key, scope = request.id.split(":")
        of = self.api.projects.get(project, lazy=True)
        found = of.variables.get(key, filter={"environment_scope": scope})
        known = {"project": project, "key": key, "environmentScope": scope, "hidden": found.hidden}
        known |= {name: getattr(found, field) for name, field in FIELDS.items()}
        state = rpc_struct({name: value for name, value in known.items() if value is not None})
        return provider_pb2.ReadResponse(id=request.id, properties=state, inputs=state)


def _kind(request: Any) -> str:
    return str(request.urn).split("::")[2].rpartition("$")[2]


def _read(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Return properties as plain values; the SDK's own marks are left out."""
    found = rpc.deserialize_properties(struct, keep_unknowns=True)
    return {name: value for name, value in found.items() if not name.startswith("__") and value is not None}


def rpc_struct(values: dict[str, Any]) -> struct_pb2.Struct:
    """Return plain values as properties."""
    made = struct_pb2.Struct()
    made.update(values)
    return made


def _created(identity: str, outputs: dict[str, Any]) -> Any:
    return provider_pb2.CreateResponse(id=identity, properties=rpc_struct(outputs))


def main() -> None:
    """Serve until the engine ends it; the first line says where."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Plugin(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
