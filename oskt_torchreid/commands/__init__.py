"""What `oskt` does on a command line; a file per command, each with `make_parser` and `main`."""
