"""Pulumi components that take a commit to a healthy container on the user's own servers."""
