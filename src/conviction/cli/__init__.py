"""The command line: options, one call, a view. One file a command."""
