"""The `octavo` command: starting and judging servers. Nothing here imports torch."""
