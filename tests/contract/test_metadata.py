"""The model as a running server describes it to its clients."""

import pytest

from tests.contract.calls import Server
from tests.contract.test_names import OUR_INPUTS, OUR_OUTPUTS, VLLM_INPUTS, VLLM_OUTPUTS

pytestmark = pytest.mark.e2e


def expected(tensors: dict[str, tuple[str, list[int]]], *, batched: bool) -> dict[str, object]:
    first = [-1] if batched else []
    return {
        name: (data_type.removeprefix("TYPE_").replace("STRING", "BYTES"), [*first, *dims])
        for name, (data_type, dims) in tensors.items()
    }


def test_metadata_has_the_names_types_and_shapes(server: Server) -> None:
    with server.client() as client:
        metadata = client.get_model_metadata("llm")
    assert list(metadata.versions) == ["1"]
    inputs = {each.name: (each.datatype, list(each.shape)) for each in metadata.inputs}
    assert inputs == expected({**VLLM_INPUTS, **OUR_INPUTS}, batched=server.batched)
    outputs = {each.name: (each.datatype, list(each.shape)) for each in metadata.outputs}
    assert outputs == expected({**VLLM_OUTPUTS, **OUR_OUTPUTS}, batched=server.batched)


def test_config_has_a_bounded_queue_with_priorities(server: Server) -> None:
    with server.client() as client:
        config = client.get_model_config("llm").config
    assert config.max_batch_size == (16 if server.batched else 0)
    assert config.model_transaction_policy.decoupled
    queue = config.dynamic_batching
    assert (queue.priority_levels, queue.default_priority_level) == (3, 2)
    assert queue.default_queue_policy.max_queue_size == 256
    assert queue.default_queue_policy.allow_timeout_override
    # A request's own timeout can only shorten this one, so there must be one.
    assert queue.default_queue_policy.default_timeout_microseconds > 0
