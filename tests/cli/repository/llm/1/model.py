"""A model without an engine: it says what the launcher's tests want to hear.

`ECHO_INITIALIZE` = refuse | die | die-once:FILE decides how loading ends. A prompt may be
`slow:SECONDS`, `die` or `engine-down`; every other one comes back with the shape it came in.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.batched = json.loads(args["model_config"])["max_batch_size"] > 0
        how, _, file = os.environ.get("ECHO_INITIALIZE", "").partition(":")
        if how == "refuse":
            raise pb_utils.TritonModelException("octavo: block_size = 3: not a power of two")
        if how == "die" or (how == "die-once" and not Path(file).exists()):
            if file:
                Path(file).touch()
            os._exit(9)
        self.up = self.gauge("octavo_engine_up", 1)
        self.running = self.gauge("octavo_num_requests_running", 0)

    def gauge(self, name, value):
        family = pb_utils.MetricFamily(
            name=name, description=name, kind=pb_utils.MetricFamily.GAUGE
        )
        gauge = family.Metric(labels={"model": "llm"})
        gauge.set(value)
        return family, gauge  # a metric must not outlive its family

    def execute(self, requests):
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
            self.running[1].set(1)
            answer = self.act(text.item().decode(), text.shape)
            self.running[1].set(0)
            value = np.array([answer.encode()], dtype=object)
            tensor = pb_utils.Tensor("text_output", value[None] if self.batched else value)
            request.get_response_sender().send(
                pb_utils.InferenceResponse([tensor]),
                flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
            )

    def act(self, prompt, shape):
        verb, _, argument = prompt.partition(":")
        if verb == "die":
            os._exit(9)
        if verb == "engine-down":
            self.up[1].set(0)
        if verb == "slow":
            time.sleep(float(argument))
        if verb == "env":
            return os.environ.get(argument, "")
        return f"{prompt} {list(shape)}"
