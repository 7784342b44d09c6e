"""The `octavo` command: starting and judging servers, measuring. Nothing here imports torch."""
