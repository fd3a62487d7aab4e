"""`./esteira bench`: the procedure's own commands, `recreate` and `blueGreen`, measured in one run on one machine."""
