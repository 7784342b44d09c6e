"""How a config says that its matrices are quantized; `quantized_checkpoint` reads them.

Without torch: plans read configs too.
"""

from typing import Any, Literal

from octavo.errors import UnsupportedModelError
from octavo.models.config_section import ConfigSection
from octavo.quantization.weights import GROUP_SIZES, StoredFormat

_KEY = "quantization_config"
_BITS = (4, 8)


def read_stored_format(config: ConfigSection) -> StoredFormat | None:
    """What `quantization_config` says, None without one. Raises UnsupportedModelError, naming key
    and value, if that is not served."""
    if config.values.get(_KEY) is None:
        return None
    values = config.values[_KEY]
    if not isinstance(values, dict):
        raise UnsupportedModelError(_KEY, values, "an object")
    section = ConfigSection(values, _KEY)
    readers = {"compressed-tensors": _compressed_tensors, "gptq": _gptq, "awq": _awq}
    method = values.get("quant_method")
    if not isinstance(method, str) or method not in readers:
        raise UnsupportedModelError(section.path("quant_method"), method, ", ".join(readers))
    return readers[method](section)


def _compressed_tensors(section: ConfigSection) -> StoredFormat:
    _only(section, "quantization_status", None, "compressed", "frozen")
    _only(section, "format", "pack-quantized", "int-quantized")
    _only(section, "kv_cache_scheme", None)
    _only(section, "sparsity_config", None, {})
    _only(section, "transform_config", None, {})
    groups = section.values.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1 or not _are_objects(groups):
        raise UnsupportedModelError(section.path("config_groups"), groups, "one group of matrices")
    ((name, values),) = groups.items()
    group = ConfigSection(values, section.path(f"config_groups.{name}"))
    _only(group, "targets", ["Linear"])
    _only(group, "format", None, section.values["format"])
    _only(group, "output_activations", None)
    weights = ConfigSection(_object(group, "weights"), group.path("weights"))
    bits = _bits(weights, "num_bits")
    _only(weights, "type", "int", None)
    _only(weights, "symmetric", True, None)
    _only(weights, "dynamic", False, None)
    # "weight" is an order while rounding only: columns lie as they did.
    _only(weights, "actorder", None, False, "weight", "static")
    _only(weights, "strategy", "group", "channel")
    is_grouped = weights.values["strategy"] == "group"
    group_size = _group_size(weights) if is_grouped else None
    quantized_activations = group.values.get("input_activations") is not None
    if quantized_activations:
        inputs = ConfigSection(_object(group, "input_activations"), group.path("input_activations"))
        _only(inputs, "num_bits", 8)
        _only(inputs, "type", "int", None)
        _only(inputs, "symmetric", True, None)
        _only(inputs, "strategy", "token")
        _only(inputs, "dynamic", True)
    layout: Literal["pack-quantized", "int-quantized"] = section.values["format"]
    if layout == "int-quantized" and bits != 8:
        raise UnsupportedModelError(weights.path("num_bits"), bits, "8 with 'int-quantized'")
    return StoredFormat(layout, bits, group_size, quantized_activations)


def _gptq(section: ConfigSection) -> StoredFormat:
    bits = _bits(section, "bits")
    _only(section, "sym", True)
    _only(section, "desc_act", False, None)
    _only(section, "checkpoint_format", "gptq", "gptq_v2", None)
    _only(section, "pack_dtype", None, "int32")
    _only(section, "dynamic", None, {})
    is_v2 = section.values.get("checkpoint_format") == "gptq_v2"
    return StoredFormat("gptq", bits, _group_size(section), zero_offset=0 if is_v2 else 1)


def _awq(section: ConfigSection) -> StoredFormat:
    _only(section, "bits", 4)
    _only(section, "zero_point", True, None)
    version = section.values.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise UnsupportedModelError(section.path("version"), version, "'gemm'")
    return StoredFormat("awq", 4, _group_size(section))


def _only(section: ConfigSection, key: str, *supported: object) -> None:
    """Refuses all but `supported`; True is not 1. An absent key is None."""
    value = section.values.get(key)
    if not any(value == each and type(value) is type(each) for each in supported):
        raise UnsupportedModelError(section.path(key), value, " or ".join(map(repr, supported)))


def _are_objects(values: dict[str, Any]) -> bool:
    return all(isinstance(value, dict) for value in values.values())


def _object(section: ConfigSection, key: str) -> dict[str, Any]:
    value = section.values.get(key)
    if not isinstance(value, dict):
        raise UnsupportedModelError(section.path(key), value, "an object")
    return value


def _bits(section: ConfigSection, key: str) -> int:
    _only(section, key, *_BITS)
    return int(section.values[key])


def _group_size(section: ConfigSection) -> int | None:
    """-1: a row is one group."""
    _only(section, "group_size", *GROUP_SIZES, -1)
    size = int(section.values["group_size"])
    return None if size == -1 else size
