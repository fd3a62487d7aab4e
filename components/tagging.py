"""What ``./esteira point-tag`` does: gives a digest another tag in the registry, by copying its manifest.

It is apart from the component that declares it (components/release.py) because it runs in every deployment, twice where
an image is built: without Pulumi's packages it starts in a third of the time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from .errors import EsteiraError
from .registry import Copied, RegistryUnavailableError, of_step


def point_tag(argv: Sequence[str], stdin: str, environ: Mapping[str, str]) -> Copied:
    """Do what `tag_command` declares: ``./esteira point-tag REPOSITORY tag=… commit=…``.

    Writes the tag's digest to stdout and one sentence to stderr.

    Args:
        argv: the repository, then ``tag=``, ``commit=`` and, where they apply, ``overwrite=no``, ``insecure=yes``.
        stdin: a JSON object with ``digest``, ``username`` and ``password``; what is null is taken from `environ`. With
            ``mayWait`` a registry that cannot be reached is no failure.
        environ: CI_REGISTRY_USER and CI_REGISTRY_PASSWORD, as GitLab sets them in a job.

    Raises:
        EsteiraError: the arguments make no sense, or the registry did not do it.
    """
    repository, options = _options(argv)
    try:
        given = json.loads(stdin)
        digest = digest_in(str(given["digest"]))
    except (ValueError, LookupError, TypeError):
        raise EsteiraError(
            "point-tag got no digest on its standard input. It is run by `pulumi up`, not by hand."
        ) from None
    registry = of_step(repository, given, environ, insecure=options.get("insecure") == "yes")
    tag = options["tag"]
    try:
        copied = registry.copy_tag(digest, tag, overwrite=options.get("overwrite") != "no")
    except RegistryUnavailableError as error:
        if not given.get("mayWait"):
            raise
        sys.stdout.write(f"{digest}\n")
        sys.stderr.write(f"{repository}:{tag} could not be moved: {error} The next `pulumi up` moves it.\n")
        return Copied(digest, digest)
    sys.stdout.write(f"{copied.digest}\n")
    if copied.changed:
        did = f"moved from {copied.previous} to" if copied.previous is not None else "is new, at"
    else:
        did = "stays at"
    sys.stderr.write(
        f"{repository}:{tag} {did} {copied.digest} (commit {options.get('commit', 'unknown')}).\n"
    )
    if copied.digest != digest:
        sys.stderr.write(
            f"The build of now, {digest}, is another one and is not used: an image that is in the registry "
            "under its commit is never replaced. Make a new commit to deploy other build settings.\n"
        )
    return copied


def digest_in(text: str) -> str:
    """Return the digest that a command printed on its last line.

    Raises:
        ValueError: there is none.
    """
    last = text.strip().rpartition("\n")[2].strip()
    if not last.startswith("sha256:") or len(last) != len("sha256:") + 64:
        raise ValueError(f"{last[:80]!r} is not a digest")
    return last


def _options(argv: Sequence[str]) -> tuple[str, dict[str, str]]:
    known = {"tag", "commit", "overwrite", "insecure"}
    repository, *rest = argv or [""]
    options = dict(part.partition("=")[::2] for part in rest)
    if "/" not in repository or not options.get("tag") or not options.keys() <= known:
        raise EsteiraError("Usage: ./esteira point-tag REGISTRY/REPOSITORY tag=TAG commit=SHA [overwrite=no]")
    return repository, options
