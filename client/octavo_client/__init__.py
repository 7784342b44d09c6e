"""Typed client for Octavo, an LLM server inside NVIDIA Triton Inference Server.

    from octavo_client import Client

    with Client("localhost:8001") as client:
        for chunk in client.stream("Once upon a time", max_tokens=64):
            print(chunk.text, end="", flush=True)

`AsyncClient` is the same for asyncio. Every failure is an `OctavoError`; see
`octavo_client._errors` for the tree.
"""

from ._async_client import AsyncClient, AsyncStream
from ._client import Client, Stream
from ._errors import (
    InvalidRequestError,
    OctavoError,
    RejectedError,
    RequestCancelledError,
    RequestTimeoutError,
    ServerError,
    UnavailableError,
    UnknownModelError,
)
from ._grpc import AsyncGrpcTransport, GrpcTransport
from ._http import AsyncHttpTransport, HttpTransport
from ._retry import Retry
from ._transport import AsyncTransport, GenerationRequest, Response, Transport
from ._types import (
    Choice,
    Chunk,
    Completion,
    Cost,
    Health,
    Logprob,
    RequestOptions,
    SamplingParameters,
    Usage,
)

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncGrpcTransport",
    "AsyncHttpTransport",
    "AsyncStream",
    "AsyncTransport",
    "Choice",
    "Chunk",
    "Client",
    "Completion",
    "Cost",
    "GenerationRequest",
    "GrpcTransport",
    "Health",
    "HttpTransport",
    "InvalidRequestError",
    "Logprob",
    "OctavoError",
    "RejectedError",
    "RequestCancelledError",
    "RequestOptions",
    "RequestTimeoutError",
    "Response",
    "Retry",
    "SamplingParameters",
    "ServerError",
    "Stream",
    "Transport",
    "UnavailableError",
    "UnknownModelError",
    "Usage",
    "__version__",
]
