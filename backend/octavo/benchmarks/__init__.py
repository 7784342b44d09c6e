"""What `octavo bench` and the scripts of bench/ measure, on an engine in this process.

`load` and `identical_worker` hold an engine, and so torch; the rest is what the command line, which
starts without torch, needs of them: settings, records, medians, pictures.
"""
