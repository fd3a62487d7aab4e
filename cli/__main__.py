"""Entry point: `python -m cli`, which the launcher ./esteira calls."""

import sys

from components import steps

if sys.argv[1:2] and sys.argv[1] in steps.STEPS:
    # Part of every deployment; the command line would take longer to load than the step to run.
    steps.main("./esteira")

from cli.app import main

main()
