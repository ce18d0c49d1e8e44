"""The `vllama` command, one file per subcommand."""
