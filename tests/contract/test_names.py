"""The names on the wire: the server's code, its two configurations and our client agree."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from octavo.cli.paths import default_repository
from octavo.sampling_params import NAMES
from octavo.serving import wire
from octavo_client import GenerationRequest, SamplingParameters
from octavo_client._grpc_wire import encode_request
from octavo_client._tensors import ModelForm

CONFIGS = {"batched": "config.pbtxt", "flat": "configs/vllm.pbtxt"}

# vllm_backend's tensors; the image and the embedding inputs are not served.
VLLM_INPUTS = {
    "text_input": ("TYPE_STRING", [1]),
    "stream": ("TYPE_BOOL", [1]),
    "sampling_parameters": ("TYPE_STRING", [1]),
    "exclude_input_in_output": ("TYPE_BOOL", [1]),
    "return_finish_reason": ("TYPE_BOOL", [1]),
    "return_cumulative_logprob": ("TYPE_BOOL", [1]),
    "return_logprobs": ("TYPE_BOOL", [1]),
    "return_num_input_tokens": ("TYPE_BOOL", [1]),
    "return_num_output_tokens": ("TYPE_BOOL", [1]),
}
VLLM_OUTPUTS = {
    "text_output": ("TYPE_STRING", [-1]),
    "finish_reason": ("TYPE_STRING", [-1]),
    "cumulative_logprob": ("TYPE_FP32", [-1]),
    "logprobs": ("TYPE_STRING", [-1]),
    "num_input_tokens": ("TYPE_UINT32", [1]),
    "num_output_tokens": ("TYPE_UINT32", [-1]),
}
OUR_INPUTS = {
    "messages": ("TYPE_STRING", [1]),
    "input_ids": ("TYPE_INT32", [-1]),
    "return_token_ids": ("TYPE_BOOL", [1]),
    "return_prompt_logprobs": ("TYPE_BOOL", [1]),
    "return_cached_tokens": ("TYPE_BOOL", [1]),
    "return_cost": ("TYPE_BOOL", [1]),
}
OUR_OUTPUTS = {
    "token_ids": ("TYPE_INT32", [-1]),
    "prompt_logprobs": ("TYPE_STRING", [-1]),
    "cached_tokens": ("TYPE_UINT32", [1]),
    "cost": ("TYPE_STRING", [1]),
}


def read_config(form: str, model: str = "llm") -> Any:
    path: Path = default_repository() / model / CONFIGS[form]
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def declared(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    names = model_config_pb2.DataType
    return {t.name: (names.Name(t.data_type), list(t.dims)) for t in tensors}


@pytest.mark.parametrize("form", CONFIGS)
def test_config_declares_the_tensors(form: str) -> None:
    config = read_config(form)
    assert declared(config.input) == {**VLLM_INPUTS, **OUR_INPUTS}
    assert declared(config.output) == {**VLLM_OUTPUTS, **OUR_OUTPUTS}
    assert all(tensor.optional for tensor in config.input)


@pytest.mark.parametrize("form", CONFIGS)
def test_unary_model_differs_only_in_being_answered_at_once(form: str) -> None:
    unary, streaming = read_config(form, "llm_unary"), read_config(form)
    assert not unary.model_transaction_policy.decoupled
    assert unary.parameters.pop("engine_model").string_value == "llm"
    streaming.ClearField("model_transaction_policy")
    # It only passes requests on; the engine is on a GPU where there is one.
    kinds = type(streaming.instance_group[0])
    assert streaming.instance_group[0].kind == kinds.KIND_AUTO
    streaming.instance_group[0].kind = kinds.KIND_CPU
    assert unary == streaming


def test_wire_names_every_declared_tensor() -> None:
    assert {*wire.INPUTS} == {*VLLM_INPUTS, *OUR_INPUTS}
    assert {wire.TEXT_OUTPUT, *wire.RETURN_FLAGS} == {*VLLM_OUTPUTS, *OUR_OUTPUTS}
    assert all(flag == f"return_{output}" for output, flag in wire.RETURN_FLAGS.items())


def test_configs_differ_only_in_their_batching() -> None:
    batched, flat = read_config("batched"), read_config("flat")
    assert (batched.max_batch_size, flat.max_batch_size) == (16, 0)
    assert list(batched.dynamic_batching.preferred_batch_size) == [4, 8, 16]
    for config in (batched, flat):
        assert config.model_transaction_policy.decoupled
        config.max_batch_size = 0
        config.dynamic_batching.ClearField("preferred_batch_size")
        config.dynamic_batching.ClearField("max_queue_delay_microseconds")
    assert batched == flat


PROMPTS: list[dict[str, Any]] = [
    {"text": "hi"},
    {"messages": [{"role": "user", "content": "hi"}]},
    {"input_ids": [3, 4]},
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=["text", "messages", "ids"])
@pytest.mark.parametrize("form", CONFIGS)
def test_client_sends_declared_tensors(form: str, prompt: dict[str, Any]) -> None:
    sampling = SamplingParameters(logprobs=1, prompt_logprobs=1, priority=1, max_tokens=3)
    request = GenerationRequest(
        model="llm",
        sampling=sampling,
        return_token_ids=True,
        return_cost=True,
        stream=True,
        **prompt,
    )
    batched = form == "batched"
    message = encode_request(
        request, ModelForm(batched=batched, counts_cached_tokens=True), timeout=2.0
    )
    config = read_config(form)
    inputs = declared(config.input)
    for tensor in message.inputs:
        data_type, dims = inputs[tensor.name]
        assert f"TYPE_{tensor.datatype}".replace("BYTES", "STRING") == data_type
        shape = list(tensor.shape)
        assert shape[:-1] == ([1] if batched else [])
        assert dims in ([-1], shape[-1:])
    asked = {output.name for output in message.outputs}
    assert asked <= {*declared(config.output)}
    assert asked == {wire.TEXT_OUTPUT, *(o for o in wire.RETURN_FLAGS if _flagged(message, o))}


def _flagged(message: Any, output: str) -> bool:
    return any(tensor.name == wire.RETURN_FLAGS[output] for tensor in message.inputs)


@pytest.mark.parametrize("name", SamplingParameters.__dataclass_fields__)
def test_client_sampling_parameter_is_known_to_the_server(name: str) -> None:
    assert name in NAMES
