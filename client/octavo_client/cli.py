"""The command line: `octavo-client complete` and `octavo-client chat`.

The answer goes to stdout, everything else to stderr. Exit codes: 0 done, 1 the request failed,
2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from ._client import Client, Stream
from ._errors import OctavoError
from ._types import Chunk, Cost, SamplingParameters, Usage

app = typer.Typer(
    help="Talk to an Octavo server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130

Url = Annotated[
    str,
    typer.Option(help="host:port of Triton's gRPC endpoint, or http://host:port of its HTTP one."),
]
Model = Annotated[str, typer.Option(help="Name of the model.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="At most this many new tokens.")]
Temperature = Annotated[float | None, typer.Option(min=0, help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling, above 0, to 1.")]
TopK = Annotated[int | None, typer.Option(help="Sample from this many tokens.")]
Seed = Annotated[int | None, typer.Option(help="Makes the answer repeatable.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text. Repeatable.")]
Tenant = Annotated[str | None, typer.Option(help="Whom the request is accounted to.")]
ShowCost = Annotated[
    bool,
    typer.Option("--cost", help="Print the receipt too: what it cost, and what the cache saved."),
]
Timeout = Annotated[
    float | None,
    typer.Option(min=0.001, help="Give up after this many seconds."),
]


@app.command()
def complete(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to go on from; without it, standard input is read."),
    ] = None,
    url: Url = "localhost:8001",
    model: Model = "llm",
    max_tokens: MaxTokens = 128,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    timeout: Timeout = None,
    tenant: Tenant = None,
    cost: ShowCost = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end instead of text.")
    ] = False,
) -> None:
    """Complete a prompt, streaming the text to the terminal."""
    if prompt is None:
        if sys.stdin.isatty():
            raise typer.BadParameter("give a PROMPT, or text on standard input")
        prompt = sys.stdin.read()
    sampling = SamplingParameters(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop or None,
        tenant=tenant,
    )
    with _connect(url, model, timeout) as client:
        try:
            stream = client.stream(prompt, sampling, return_cost=cost)
            answer = _show(stream, quiet=as_json)
        except OctavoError as exc:
            raise _failed(url, exc) from exc
        except KeyboardInterrupt:
            raise typer.Exit(_EXIT_INTERRUPTED) from None
    if as_json:
        print(json.dumps(asdict(answer), ensure_ascii=False))


@app.command()
def chat(
    system: Annotated[
        str | None,
        typer.Option(help="A system message that opens the conversation."),
    ] = None,
    url: Url = "localhost:8001",
    model: Model = "llm",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    timeout: Timeout = None,
    tenant: Tenant = None,
    cost: ShowCost = False,
) -> None:
    """Chat in the terminal. /reset forgets, /exit or end of input leaves, Ctrl-C stops an answer.

    Every line of input is one message, so it also works in a pipe; there the first failure ends it.
    """
    sampling = SamplingParameters(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop or None,
        tenant=tenant,
    )
    opening = [{"role": "system", "content": system}] if system else []
    with _connect(url, model, timeout) as client:
        try:
            _converse(client, url, opening, sampling, cost=cost)
        except KeyboardInterrupt:
            raise typer.Exit(_EXIT_INTERRUPTED) from None


def _converse(
    client: Client,
    url: str,
    opening: list[dict[str, str]],
    sampling: SamplingParameters,
    *,
    cost: bool,
) -> None:
    """Answer line after line. In a pipe, a failure or Ctrl-C ends it; in a terminal, the turn."""
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives input() its line editing
    messages = opening
    while True:
        try:
            line = input("> " if interactive else "").strip()
            if line == "/exit":
                return
            if line == "/reset":
                messages = opening
            elif line:
                # A turn that fails or is stopped is forgotten, question and all.
                asked = [*messages, {"role": "user", "content": line}]
                answer = _show(client.stream_chat(asked, sampling, return_cost=cost))
                messages = [*asked, {"role": "assistant", "content": answer.text}]
        except EOFError:
            return
        except OctavoError as exc:
            failure = _failed(url, exc)
            if not interactive:
                raise failure from exc
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("(stopped)", file=sys.stderr)


def _receipt(cost: Cost) -> str:
    """In seconds where the server has no price."""

    def amount(usd: float | None, seconds: float) -> str:
        return f"{seconds:.4f} s" if usd is None else f"${usd:.3g}"

    total = amount(cost.usd, cost.prefill_s + cost.decode_s)
    prefill = amount(cost.prefill_usd, cost.prefill_s)
    decode = amount(cost.decode_usd, cost.decode_s)
    saved = amount(cost.saved_usd, cost.saved_s)
    held = amount(cost.held_usd, cost.held_s)
    price = "no price is set on the server: set price_usd_per_hour"
    if cost.price_usd_per_hour is not None:
        as_of = f" as of {cost.price_as_of}" if cost.price_as_of else ""
        price = f"${cost.price_usd_per_hour:g} per hour{as_of}"
    return (
        f"cost {total} (prefill {prefill}, decode {decode}); {cost.cached_tokens} cached tokens "
        f"saved {saved}, kept for {held}; queued {cost.queue_s:.3f} s; {price}"
    )


@dataclass(frozen=True)
class _Answer:
    """What `--json` prints; times as seen from here, in seconds."""

    text: str
    finish_reason: str
    usage: Usage
    ttft_s: float
    total_s: float
    cost: Cost | None

    def summary(self) -> str:
        tokens = self.usage.completion_tokens
        return (
            f"{self.usage.prompt_tokens} prompt + {tokens} completion tokens, "
            f"{self.finish_reason}, TTFT {self.ttft_s:.3f} s, {tokens / self.total_s:.1f} tok/s"
        )


def _show(stream: Stream, *, quiet: bool = False) -> _Answer:
    """Print the text as it comes, then the summary to stderr; on any exit the stream is closed."""
    started = time.monotonic()
    first: float | None = None
    texts: list[str] = []
    last: Chunk | None = None
    with stream, _line_end(texts, quiet):
        for last in stream:
            if last.text:
                first = first or time.monotonic()
                texts.append(last.text)
                if not quiet:
                    print(last.text, end="", flush=True)
    assert last is not None and last.finish_reason is not None and last.usage is not None
    ended = time.monotonic()
    answer = _Answer(
        text="".join(texts),
        finish_reason=last.finish_reason,
        usage=last.usage,
        ttft_s=round((first or ended) - started, 6),
        total_s=round(ended - started, 6),
        cost=last.cost,
    )
    print(answer.summary(), file=sys.stderr)
    if answer.cost is not None:
        print(_receipt(answer.cost), file=sys.stderr)
    return answer


@contextlib.contextmanager
def _line_end(texts: list[str], quiet: bool) -> Iterator[None]:
    """End the line that `texts` began, also when the answer is cut off."""
    try:
        yield
    finally:
        if texts and not quiet and not texts[-1].endswith("\n"):
            print(flush=True)


def _connect(url: str, model: str, timeout: float | None) -> Client:
    try:
        return Client(url, model=model, timeout=timeout)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


def _failed(url: str, exc: OctavoError) -> typer.Exit:
    """Say in one line what went wrong."""
    print(f"error: {url}: {' '.join(exc.message.split())}", file=sys.stderr)
    return typer.Exit(_EXIT_FAILED)


def main() -> None:
    """Entry point of `octavo-client`."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Not every text fits every terminal; half an answer is worse than a "?".
            stream.reconfigure(errors="replace")
    app()
