"""The Triton model: loads the engine, takes requests in, shuts down."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from octavo.config import load_config
from octavo.engine import Engine
from octavo.errors import ConfigError, OctavoError
from octavo.serving.admission import Admission
from octavo.serving.billing import Billing
from octavo.serving.incoming import ErrorCode, TritonSender, copy_request
from octavo.serving.metrics import MetricsExporter
from octavo.serving.relay import Arrival, RelayServer, socket_path
from octavo.serving.request import RequestReader
from octavo.serving.responder import Responder
from octavo.serving.tokenizer import Tokenizer
from octavo.stats import RequestStats

log = logging.getLogger(__name__)


class OctavoModel:
    """What Triton's Python backend calls: initialize, execute, finalize."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the engine. Its errors reach the server's log as `octavo: …`."""
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, format="octavo %(levelname)s %(message)s"
        )
        try:
            self._initialize(args)
        except OctavoError as exc:
            raise pb_utils.TritonModelException(f"octavo: {exc}") from None

    def _initialize(self, args: dict[str, str]) -> None:
        if int(args["model_instance_device_id"]) > 0:
            raise ConfigError(
                f"instance {args['model_instance_name']}: an engine serves one GPU; start a server "
                "for each, with CUDA_VISIBLE_DEVICES set to its GPU"
            )
        self._batched = json.loads(args["model_config"])["max_batch_size"] > 0
        version = Path(args["model_repository"]) / args["model_version"]
        config = load_config(version / "engine.toml")
        tokenizer = Tokenizer(config.model)
        self._engine = Engine(config)
        reader = RequestReader(tokenizer, self._engine.max_model_len)
        stats = RequestStats(self._engine.tenant_labels)
        self._billing = Billing(config)
        self._responder = Responder(self._engine, config.sender_threads, config.sender_duty_cycle)
        self._admission = Admission(
            self._engine, self._responder, reader, tokenizer, stats, config.slo, self._billing
        )
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._metrics = MetricsExporter(self._engine, stats, self._billing, labels)
        self._engine.start()
        self._relay = RelayServer(socket_path(args["model_name"]), self._admission.admit)
        log.info(
            "serving; %d sequences run, %d more are admitted, the rest wait in the server's queue",
            config.max_num_seqs, config.max_num_waiting,
        )  # fmt: skip

    def execute(self, requests: list[Any]) -> None:
        """Admits the requests and then holds Triton's thread while the engine is full."""
        arrivals: list[Arrival] = []
        for request in requests:
            sender = TritonSender(request)
            try:
                copied = copy_request(request, batched=self._batched, unary=False)
                arrivals.append((copied, sender))
            except Exception as exc:
                log.exception("a request could not be read")
                sender.fail(f"{type(exc).__name__}: {exc}", ErrorCode.INTERNAL)
        self._admission.admit(arrivals)

    def finalize(self) -> None:
        """Lets what runs end, within the drain's bound."""
        self._engine.stop()
        self._responder.stop()
        self._relay.close()
        self._billing.close()
        self._metrics.stop()
