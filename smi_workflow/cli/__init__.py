"""The command line: `smi`, one file per command group."""
