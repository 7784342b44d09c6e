"""How numbers are written down in fewer bytes than they are computed in."""
