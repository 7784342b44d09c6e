"""Arithmetic of speed, size and dollars: plain numbers in, plain numbers out. Every formula has its
one home here; what measures or decides gets it from here.

roofline    bytes and FLOPs of a step          model      what weights, keys and values weigh
capacity    KV memory, requests that fit       latency    steps, TTFT, TPOT; fitting: its constants
cost        dollars                            hardware   peaks; prices: dated dollars
setup, plan, limits, stages, advice            an engine under a workload
traffic, contracts, lulls                      a month under contracts
comparison, simulation                         what their comparison rests on
attribution, live                              a running server: whose its time was, what limits it
"""
