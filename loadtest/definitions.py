"""What each number means: the one home of these texts, which are printed beside the numbers."""

from __future__ import annotations

# To be raised whenever a definition changes: numbers of different versions do not compare.
DEFINITION_VERSION = 1

DEFINITIONS = {
    "TTFT": "request sent → first output with text, seen by the client",
    "ITL": "each gap between consecutive outputs of one request, pooled over all requests; an "
    "output may carry several tokens",
    "TPOT": "(e2e − TTFT) / (output tokens − 1), one per request; none below two tokens",
    "e2e": "request sent → last output",
    "response TTFT, response e2e": "the same, but from when the schedule wanted the request sent "
    "(in a closed loop nobody did: both are equal)",
    "schedule lag": "sent − wanted by the schedule: the load generator's own lateness",
    "duration": "first request sent → last output of a whole answer; what the rates divide by",
    "goodput": "requests per second that met every SLO. Errors count against it; requests "
    "cancelled on purpose, cut off by the end of the run, or without a TPOT are not evaluated",
    "percentiles": "of the raw values, interpolated linearly. * marks one from too few values: "
    "p50 wants 200, p90 500, p99 1000",
}
