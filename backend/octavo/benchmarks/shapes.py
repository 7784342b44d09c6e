"""A checkpoint's sizes, as the planner's formulas take them."""

from octavo.execution.model_runner import ModelRunner
from octavo.models.sizes import decoder_shape
from octavo.planner.operations import Network, Operation

__all__ = ["decoder_shape", "network_of"]


def network_of(runner: ModelRunner) -> Network:
    """As it is loaded: what a step reads of its weights, and of each token in KV memory."""
    model, layout = runner.model, runner.kv_cache.layout
    matrices: dict[Operation, float] = {
        "qkv": sum(layer.qkv.num_bytes for layer in model.layers),
        "output": sum(layer.output.num_bytes for layer in model.layers),
        "gate_up": sum(layer.gate_up.num_bytes for layer in model.layers),
        "down": sum(layer.down.num_bytes for layer in model.layers),
        "lm_head": model.lm_head.num_bytes,
    }
    matrices["norm"] = model.step_weight_bytes - sum(matrices.values())
    return Network(
        shape=decoder_shape(runner.model_config),
        weight_bytes=matrices,
        kv_layer_bytes=[
            layout.layer_bytes(index) / layout.block_size for index in range(len(layout.formats))
        ],
        windows=[layer.window for layer in model.layers],
    )
