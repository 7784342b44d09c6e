"""The order of work of the playbook, measured on this machine: one switch per stage."""
