"""Load tests of an Octavo server with Locust: open and closed loop, over gRPC and HTTP streams.

`locustfile.py` is what Locust loads, `python -m loadtest` what `make loadtest` runs, and
`python -m loadtest.report DIR` makes table and report anew from the raw records of a run.
"""
