"""What keeps an engine from serving more, in a sentence."""

from __future__ import annotations

from octavo.planner.latency import Prediction, decode_work
from octavo.planner.plan import Outcome, Workload
from octavo.planner.roofline import mean_decode_context_tokens
from octavo.planner.setup import GPU_SEQUENCES


def gib(num_bytes: float) -> str:
    """To three digits or so."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if abs(num_bytes) >= unit:
            return f"{num_bytes / unit:,.{0 if abs(num_bytes) >= 100 * unit else 1}f} {name}"
    return f"{num_bytes / 2**10:,.3g} KiB"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.{0 if seconds >= 0.1 else 1}f} ms"


def binding_limit(outcome: Outcome, workload: Workload, hardware: str) -> str:
    """A sentence, which begins with the name of the limit."""
    fit, request, slo = outcome.fit, workload.request, workload.slo
    weights = f"the weights ({gib(fit.weights.stored)})"
    each = f"{gib(fit.request_bytes)} of KV memory for {request.stored_tokens:,} tokens"
    if outcome.limit == "weights":
        return (
            f"Weights: {weights} leave no KV memory on {hardware}; take a smaller weight format "
            "or more memory."
        )
    step = f" and the largest step ({gib(fit.step_bytes)})" if fit.step_bytes else ""
    if outcome.limit == "step":
        return f"Step: {weights}{step} leave no KV memory on {hardware}; {_large_step(outcome)}."
    if outcome.best is None and outcome.lone is None:
        return (
            f"KV memory: {weights}{step} leave {gib(fit.kv_bytes)} on {hardware}, and one request "
            f"needs {each}."
        )
    if outcome.best is None:
        assert outcome.lone is not None
        return no_batch(outcome.lone, workload, hardware)
    batch, room = int(outcome.best.batch), f"KV memory has room for {fit.requests:,}"
    if outcome.limit == "kv":
        return (
            f"KV memory: {gib(fit.kv_bytes)} hold {fit.requests:,} requests at once, each with "
            f"{each}; the SLO would allow more. {_step(outcome)}"
        )
    if outcome.limit == "max_num_seqs":
        return (
            f"max_num_seqs: it stops the batch at {batch:,}, though {room} and the SLO is met. "
            f"{_step(outcome)}"
        )
    beyond = outcome.engine.at(batch + 1)
    if outcome.limit == "ttft":
        found, name, allowed = beyond.ttft_s, "TTFT", slo.ttft_s
    else:
        found, name, allowed = beyond.tpot_s, "TPOT", slo.tpot_s
    return (
        f"{name}: with {batch + 1:,} requests it is {milliseconds(found)}, more than the SLO's "
        f"{milliseconds(allowed)}, though {room}. {_step(outcome)}"
    )


def _large_step(outcome: Outcome) -> str:
    """What takes most of a step's memory, and the option that lowers it."""
    fit, setup = outcome.fit, outcome.engine.setup
    if fit.logits_bytes > fit.activation_bytes:
        sequences = setup.max_num_seqs or GPU_SEQUENCES
        return (
            f"logits of {sequences:,} sequences take {gib(fit.logits_bytes)} of it: lower "
            "--max-num-seqs"
        )
    return (
        f"activations of {setup.max_num_batched_tokens:,} tokens take {gib(fit.activation_bytes)} "
        "of it: lower --max-batched-tokens"
    )


def no_batch(lone: Prediction, workload: Workload, hardware: str) -> str:
    slo = workload.slo
    return (
        f"SLO: no batch meets it on {hardware}: one request alone has a TTFT of "
        f"{milliseconds(lone.ttft_s)} (limit {milliseconds(slo.ttft_s)}) and a TPOT of "
        f"{milliseconds(lone.tpot_s)} (limit {milliseconds(slo.tpot_s)})."
    )


def _step(outcome: Outcome) -> str:
    """Where the time of a decode step at the best batch goes."""
    best, engine = outcome.best, outcome.engine
    assert best is not None
    request, speed, loaded = engine.request, engine.speed, engine.loaded
    context = mean_decode_context_tokens(request.prompt_tokens, max(request.output_tokens, 2))
    work = decode_work(loaded, best.batch, context)
    _, bound = work.floor_s(
        speed.read_bytes_per_s * loaded.read_ratio(speed.efficiency),
        speed.flops_per_s * speed.efficiency.decode_compute_ratio,
    )
    kv_ratio = 1 - loaded.step_weight_bytes / work.bytes
    share = f"{gib(work.bytes)}, {kv_ratio:.0%} of it keys and values"
    if best.prefill_s > best.decode_s:
        return f"Most of the engine's time goes to prompts; a decode step reads {share}."
    if bound == "memory":
        return f"A decode step is bound by reading memory: {share}."
    return f"A decode step is bound by computing: {work.flops / 1e12:.2g} TFLOP."
