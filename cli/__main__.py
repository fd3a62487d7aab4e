"""Entry point: `python -m cli`, which the launcher ./esteira calls."""

from cli.app import main

main()
