"""What the subcommands of `evoselect` do."""
