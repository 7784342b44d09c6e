"""The quality gate: is a candidate as good as its baseline on this text, and the proof of it."""
