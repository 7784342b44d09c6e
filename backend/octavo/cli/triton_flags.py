"""Which command-line flags each tritonserver has: data, and how a binary tells its own.

2.51.0 is the embedded server; its row is what its `--help` prints, and a test holds the two
together. 2.71.0 is the container's, release 26.07; its image's build holds the flags that we use
against its binary (`octavo exec-server --check`). Its row is 2.51.0's without what was deprecated
there, and with:

- grpc-infer-thread-count, grpc-max-response-pool-size: src/command_line_parser.cc of
  github.com/triton-inference-server/server at 5fd6bc48; the second also in its
  docs/customization_guide/deploy.md
- http-max-input-size: in that server's source since 2.60.0; 64 MiB when absent
- allow-client-shm: docs/protocol/extension_shared_memory.md at 0d50ab5e; false when absent
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from octavo.errors import ConfigError

CONTAINER_VERSION = "2.71.0"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SINCE_2_51 = _names(
    """
    help id exit-timeout-secs log-verbose log-info log-warning log-error log-format log-file
    model-store model-repository exit-on-error disable-auto-complete-config strict-readiness
    model-control-mode repository-poll-secs load-model model-config-name model-load-thread-count
    model-load-retry-count model-namespacing enable-peer-access allow-http http-address
    http-port reuse-http-port http-header-forward-pattern http-thread-count http-restricted-api
    allow-grpc grpc-address grpc-port reuse-grpc-port grpc-header-forward-pattern
    grpc-infer-allocation-pool-size grpc-use-ssl grpc-use-ssl-mutual grpc-server-cert
    grpc-server-key grpc-root-cert grpc-infer-response-compression-level grpc-keepalive-time
    grpc-keepalive-timeout grpc-keepalive-permit-without-calls grpc-http2-max-pings-without-data
    grpc-http2-min-recv-ping-interval-without-data grpc-http2-max-ping-strikes
    grpc-max-connection-age grpc-max-connection-age-grace grpc-restricted-protocol
    allow-sagemaker sagemaker-port sagemaker-safe-port-range sagemaker-thread-count
    allow-vertex-ai vertex-ai-port vertex-ai-thread-count vertex-ai-default-model allow-metrics
    allow-gpu-metrics allow-cpu-metrics metrics-address metrics-port metrics-interval-ms
    metrics-config trace-config backend-directory backend-config repoagent-directory
    cache-config cache-directory rate-limit rate-limit-resource pinned-memory-pool-byte-size
    cuda-memory-pool-byte-size cuda-virtual-address-size min-supported-compute-capability
    buffer-manager-thread-count host-policy model-load-gpu-limit
    """
)
_DEPRECATED_IN_2_51 = _names(
    """
    strict-model-config response-cache-byte-size trace-file trace-level trace-rate trace-count
    trace-log-frequency
    """
)
_NEW_IN_2_71 = _names(
    """
    allow-client-shm grpc-infer-thread-count grpc-max-response-pool-size http-max-input-size
    """
)

FLAGS = {
    "2.51.0": _SINCE_2_51 | _DEPRECATED_IN_2_51,
    "2.71.0": _SINCE_2_51 | _NEW_IN_2_71,
}


def flags_of(version: str) -> frozenset[str]:
    if version not in FLAGS:
        raise ConfigError(f"Triton {version}: its flags are not known, only {', '.join(FLAGS)}'s")
    return FLAGS[version]


def flags_in_help(text: str) -> frozenset[str]:
    """The flags that `tritonserver --help` lists."""
    return frozenset(re.findall(r"^ +--([a-z0-9-]+)", text, re.MULTILINE))


def flags_in(arguments: Iterable[str]) -> frozenset[str]:
    """Those that a command line uses. Raises ConfigError for an argument that is no flag."""
    names = set()
    for argument in arguments:
        match = re.match(r"--([a-z0-9-]+)(=|$)", argument)
        if match is None:
            raise ConfigError(f"server argument {argument}: not of the form --flag or --flag=value")
        names.add(match[1])
    return frozenset(names)
