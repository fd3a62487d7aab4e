"""Carries a Pulumi program out for real where the Pulumi engine cannot be had.

The program runs as it would under the engine, in a process of its own, against a resource monitor that does
what each resource says: builds and pushes the image, runs the commands here or over SSH, in the order that
the dependencies give. What it has not got is state: no preview, no diff, and every resource is carried out
at every run.
"""

from rehearsal.errors import RehearsalError
from rehearsal.run import RehearsalResult, RehearsedResource, carry_out

__all__ = ["RehearsalError", "RehearsalResult", "RehearsedResource", "carry_out"]
