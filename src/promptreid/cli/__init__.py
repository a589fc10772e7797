"""The command line. `promptreid.cli.main.COMMANDS` lists the commands, each with its module of this folder."""
