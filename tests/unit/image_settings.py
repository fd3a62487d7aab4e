"""Settings for the tests of source, registry, image and release."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from pydantic import SecretStr

if TYPE_CHECKING:
    from components.settings import Settings

PASSWORD = "MARKER-registry-password"


def make_settings(root: Path, **changes: Any) -> Settings:
    """Return settings with the named top-level or image values changed."""
    image: dict[str, Any] = {
        "context": "app",
        "dockerfile": "Dockerfile",
        "target": None,
        "platform": None,
        "build_args": {},
    }
    image |= {name: changes.pop(name) for name in list(changes) if name in image}
    values: dict[str, Any] = {
        "project": "esteira",
        "stack": "staging",
        "root": root,
        "registry": "127.0.0.1:5000",
        "repository": "group/parasite",
        "registry_user": "ana",
        "registry_password": SecretStr(PASSWORD),
        "registry_credential_from_environment": False,
        "registry_insecure": False,
        "registry_plain_http": True,
        "commit": None,
        "promote": False,
        "allow_dirty": True,
        "moving_tag": "latest",
        "image": SimpleNamespace(**image),
    }
    return cast("Settings", SimpleNamespace(**{**values, **changes}))
