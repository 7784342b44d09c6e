"""Arithmetic of speed and size: plain numbers in, plain numbers out. Every formula has its one home
here; what measures or decides gets it from here."""
