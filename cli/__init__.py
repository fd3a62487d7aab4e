"""Esteira's command line: prepares, tries out and looks at things. It never hides Pulumi."""
