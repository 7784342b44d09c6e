"""engine.toml and the environment: types, bounds, overrides; faults name field and limit."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineConfig, load_config, make_config
from octavo.errors import ConfigError


def assert_refused(*parts: str, **values: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(**{"model": "m", **values})
    message = str(caught.value)
    assert message.startswith("engine settings: ")
    assert all(part in message for part in parts), message


def shown(value: object) -> str:
    """A test's id: short, and different for 1 and "1"."""
    text = repr(value)
    return text if len(text) < 30 else f"{text[:20]}({len(text)})"


def write(folder: Path, text: str) -> Path:
    (folder / "engine.toml").write_text(text, encoding="utf-8")
    return folder / "engine.toml"


def test_defaults() -> None:
    config = make_config(model="m")
    assert config == EngineConfig(
        model=Path("m"), dtype="auto", weight_format="auto", weight_group_size=128,
        lm_head_format="auto", max_model_len=None, max_num_batched_tokens=256,
        max_num_seqs=32, max_num_waiting=4, block_size=None, block_bytes=None,
        kv_cache_dtype="auto", kv_cache_skip_layers=(), kv_cache_bytes=None,
        watermark_ratio=0.01, num_threads=None, sender_threads=1,
        sender_duty_cycle=0.15, drain_timeout_s=30.0,
    )  # fmt: skip
    assert (config.slo.ttft_s, config.slo.tpot_s) == (2.0, 0.1)
    assert config.max_num_admitted == 36


def test_settings_cannot_be_changed() -> None:
    config = make_config(model="m")
    with pytest.raises(AttributeError):
        config.block_size = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        ("1073741824", 2**30),
        ("1B", 1),
        ("2GiB", 2**31),
        ("512MiB", 2**29),
        ("512 mib", 2**29),
        (" 1.5GiB ", 3 * 2**29),
        ("0.5KiB", 512),
        ("3TB", 3 * 10**12),
        ("7k", 7000),
        ("9007199254740993B", 2**53 + 1),
        ("auto", None),
        (None, None),
        (1e9, 10**9),
    ],
)
def test_kv_cache_bytes_takes_sizes(value: object, expected: int | None) -> None:
    assert make_config(model="m", kv_cache_bytes=value).kv_cache_bytes == expected


@pytest.mark.parametrize(
    "value",
    ["", "GiB", "2 apples", "2GiBs", "-1GiB", "1e9", "0x10", "1,5GiB", "1..5GiB", "2PiB", "nan",
     "inf", "0", "0GiB", "0.1B", 0, -1, 1.5, True, [1], {}, float("nan"), float("inf"),
     "9" * 25 + "GiB", "9" * 500 + "GiB", "9" * 5000, 2**63, 1e300],
    ids=shown,
)  # fmt: skip
def test_kv_cache_bytes_refuses_what_is_no_size(value: object) -> None:
    assert_refused("kv_cache_bytes = ", kv_cache_bytes=value)


BOUNDS = {
    "max_model_len": (2, None),
    "max_num_batched_tokens": (32, 2**20),
    "max_num_seqs": (1, 256),
    "max_num_waiting": (0, 4096),
    "block_size": (1, 2**20),
    "num_threads": (1, 256),
    "sender_threads": (1, 16),
    "drain_timeout_s": (0, 86_400),
}


@pytest.mark.parametrize("field", BOUNDS)
def test_bounds(field: str) -> None:
    low, high = BOUNDS[field]
    assert getattr(make_config(model="m", **{field: low}), field) == low
    if field not in ("max_num_batched_tokens", "max_num_seqs"):  # these two bound each other
        assert_refused(f"{field} = {low - 1}", str(low), **{field: low - 1})
    if high is not None:
        assert getattr(make_config(model="m", **{field: high}), field) == high
        if field != "max_num_seqs":
            assert_refused(f"{field} = {high + 1}", str(high), **{field: high + 1})


@pytest.mark.parametrize(
    "value", [True, False, 1.5, "x", "1.5", [4], {}, float("nan"), 10**30], ids=repr
)
@pytest.mark.parametrize("field", [f for f in BOUNDS if f not in ("drain_timeout_s",)])
def test_whole_numbers_are_needed(field: str, value: object) -> None:
    if field == "max_model_len" and value == 10**30:
        return  # the model bounds it
    assert_refused(f"{field} = {value!r}", "should be", **{field: value})


@pytest.mark.parametrize("value", [True, "x", [1], float("nan"), float("inf"), -0.1, 1e300])
@pytest.mark.parametrize("field", ["drain_timeout_s", "watermark_ratio"])
def test_finite_numbers_are_needed(field: str, value: object) -> None:
    assert_refused(f"{field} = {value!r}", "should be", **{field: value})


@pytest.mark.parametrize("value", [0, -0.5, 1.01, True, "x", float("nan")])
def test_sender_duty_cycle_is_above_zero_and_at_most_one(value: object) -> None:
    assert_refused(f"sender_duty_cycle = {value!r}", "should be", sender_duty_cycle=value)
    assert make_config(model="m", sender_duty_cycle=1).sender_duty_cycle == 1


@pytest.mark.parametrize("value", [1.0, 2])
def test_watermark_ratio_is_below_one(value: float) -> None:
    assert_refused(f"watermark_ratio = {value!r}", "less than 1", watermark_ratio=value)
    assert make_config(model="m", watermark_ratio=0).watermark_ratio == 0


def test_a_step_has_room_for_every_running_sequence() -> None:
    assert_refused(
        "max_num_batched_tokens = 7", "max_num_seqs = 8", max_num_batched_tokens=7, max_num_seqs=8
    )
    assert make_config(model="m", max_num_batched_tokens=8, max_num_seqs=8).max_num_admitted == 12


@pytest.mark.parametrize("value", ["int8", "half", "", 16, None])
def test_dtype_is_one_of_four(value: object) -> None:
    assert_refused(f"dtype = {value!r}", "'bfloat16'", dtype=value)


@pytest.mark.parametrize("value", ["bfloat16", "fp8", "", 8, None])
def test_weight_format_is_one_of_five(value: object) -> None:
    assert_refused(f"weight_format = {value!r}", "'w4a8'", weight_format=value)
    assert make_config(model="m", weight_format="w8a8").weight_format == "w8a8"


@pytest.mark.parametrize("value", [16, 0, -32, 256, "48", True, None, "auto", 32.5], ids=shown)
def test_weight_group_size_is_one_of_three(value: object) -> None:
    assert_refused(
        f"weight_group_size = {value!r}", "should be", weight_format="int4",
        weight_group_size=value,
    )  # fmt: skip


@pytest.mark.parametrize("weight_format", ["int4", "w4a8"])
@pytest.mark.parametrize(("value", "expected"), [(32, 32), ("64", 64), (128, 128)], ids=shown)
def test_weight_group_size(weight_format: str, value: object, expected: int) -> None:
    config = make_config(model="m", weight_format=weight_format, weight_group_size=value)
    assert config.weight_group_size == expected


@pytest.mark.parametrize("weight_format", ["auto", "int8", "w8a8"])
def test_only_some_formats_have_groups(weight_format: str) -> None:
    assert_refused(
        "weight_group_size = 64", f"weight_format = {weight_format!r} has no groups", "'int4'",
        weight_format=weight_format, weight_group_size=64,
    )  # fmt: skip


def test_lm_head_format() -> None:
    config = make_config(model="m", weight_format="int4", lm_head_format="bfloat16")
    assert config.lm_head_format == "bfloat16"
    assert_refused("lm_head_format = 'int4'", "'bfloat16'", lm_head_format="int4")
    assert_refused("lm_head_format = 'bfloat16'", "weight_format", lm_head_format="bfloat16")


@pytest.mark.parametrize("value", ["int4", "float8", "", 8, None])
def test_kv_cache_dtype_is_one_of_six(value: object) -> None:
    assert_refused(f"kv_cache_dtype = {value!r}", "'int8'", kv_cache_dtype=value)
    assert make_config(model="m", kv_cache_dtype="fp8").kv_cache_dtype == "fp8"


@pytest.mark.parametrize(
    ("value", "expected"),
    [([], ()), ("", ()), ([0, 6], (0, 6)), ("0,6", (0, 6)), (" 3 ", (3,)), ((1,), (1,))],
    ids=shown,
)
def test_layers_to_skip_are_a_list(value: object, expected: tuple[int, ...]) -> None:
    config = make_config(model="m", kv_cache_dtype="int8", kv_cache_skip_layers=value)
    assert config.kv_cache_skip_layers == expected


@pytest.mark.parametrize("value", [[-1], "0,-1", [True], [1.5], "a", "1;2", 3, None], ids=shown)
def test_layers_to_skip_are_whole_numbers(value: object) -> None:
    assert_refused(
        "kv_cache_skip_layers = ", "should be", kv_cache_dtype="int8", kv_cache_skip_layers=value
    )


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "float32", "bfloat16", "float16"])
def test_only_quantized_formats_skip_layers(kv_cache_dtype: str) -> None:
    assert_refused(
        "kv_cache_skip_layers = [2]", f"{kv_cache_dtype!r}", kv_cache_dtype=kv_cache_dtype,
        kv_cache_skip_layers=[2],
    )  # fmt: skip


def test_a_block_is_sized_in_tokens_or_in_bytes() -> None:
    assert make_config(model="m", block_bytes="16KiB").block_bytes == 16384
    assert make_config(model="m", block_bytes="auto", block_size="auto").block_size is None
    assert_refused("block_size = 16 and block_bytes = 16384", block_size=16, block_bytes=16384)
    for value in (0, -1, "", "many", True, 1.5):
        assert_refused("block_bytes = ", block_bytes=value)


@pytest.mark.parametrize("name", ["block_sise", "Block_Size", "", "slo.ttft_s"])
def test_unknown_settings_are_refused(name: str) -> None:
    assert_refused("unknown setting", "block_size", **{name: 1})


@pytest.mark.parametrize("value", [0, -1, True, "x", float("nan"), float("inf"), None])
@pytest.mark.parametrize("field", ["ttft_s", "tpot_s"])
def test_slo_is_above_zero(field: str, value: object) -> None:
    assert_refused(f"slo.{field} = {value!r}", "should be", slo={field: value})


@pytest.mark.parametrize("value", [0, -3.2, "x", True, float("inf")], ids=shown)
def test_a_price_is_above_zero(value: object) -> None:
    assert_refused(f"price_usd_per_hour = {value!r}", "should be", price_usd_per_hour=value)


def test_a_price_can_say_when_it_held() -> None:
    for as_of in ("2026-11-20", date(2026, 11, 20)):
        config = make_config(model="m", price_usd_per_hour="3.2", price_as_of=as_of)
        assert (config.price_usd_per_hour, config.price_as_of) == (3.2, date(2026, 11, 20))
    assert_refused("price_as_of", "price_usd_per_hour is not", price_as_of="2026-11-20")
    assert_refused("price_as_of = 'x'", "date", price_usd_per_hour=1, price_as_of="x")
    future = date.today() + timedelta(days=30)
    assert_refused(f"{future} lies in the future", price_usd_per_hour=1, price_as_of=future)


def test_slo_refuses_what_it_does_not_know() -> None:
    assert_refused("slo.p99_s = 1.0: unknown setting; known: ttft_s, tpot_s", slo={"p99_s": 1.0})
    assert_refused("slo = 5", slo=5)


def test_model_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine settings: model.*required"):
        make_config()
    with pytest.raises(ConfigError, match=r"engine\.toml: model is not set.*OCTAVO_MODEL"):
        load_config(write(tmp_path, "block_size = 4"), {})


def test_load_config_reads_toml(tmp_path: Path) -> None:
    text = """
        model = "../models/tiny"
        block_size = 32
        kv_cache_bytes = "1GiB"
        max_model_len = "auto"
        [slo]
        tpot_s = 0.05
    """
    config = load_config(write(tmp_path, text), {})
    assert config.model == tmp_path / "../models/tiny"
    assert (config.block_size, config.kv_cache_bytes, config.max_model_len) == (32, 2**30, None)
    assert (config.slo.ttft_s, config.slo.tpot_s) == (2.0, 0.05)


def test_load_config_keeps_an_absolute_model(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, 'model = "/srv/tiny"'), {}).model == Path("/srv/tiny")


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    toml = write(tmp_path, 'model = "tiny"\nblock_size = 32\n[slo]\nttft_s = 9\ntpot_s = 0.05')
    environ = {
        "OCTAVO_MODEL": "elsewhere/other",
        "OCTAVO_ENGINE_BLOCK_SIZE": "8",
        "OCTAVO_ENGINE_KV_CACHE_BYTES": "512MiB",
        "OCTAVO_ENGINE_NUM_THREADS": "auto",
        "OCTAVO_ENGINE_WATERMARK_RATIO": "0.25",
        "OCTAVO_ENGINE_SLO_TTFT_S": "1.5",
        "OCTAVO_OTHER": "x",
        "BLOCK_SIZE": "64",
    }
    config = load_config(toml, environ)
    assert config.model == Path("elsewhere/other")
    assert (config.block_size, config.kv_cache_bytes, config.num_threads) == (8, 2**29, None)
    assert config.watermark_ratio == 0.25
    assert (config.slo.ttft_s, config.slo.tpot_s) == (1.5, 0.05)


def test_the_environment_can_be_all_there_is(tmp_path: Path) -> None:
    environ = {"OCTAVO_MODEL": "m", "OCTAVO_ENGINE_SLO_TPOT_S": "0.2"}
    config = load_config(write(tmp_path, ""), environ)
    assert (config.model, config.slo.tpot_s) == (Path("m"), 0.2)
    environ = {"OCTAVO_ENGINE_MODEL": "other", "OCTAVO_MODEL": ""}
    assert load_config(write(tmp_path, 'model = "m"'), environ).model == Path("other")


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("OCTAVO_ENGINE_BLOCK_SIZE", "big", ["block_size = 'big'", "integer"]),
        ("OCTAVO_ENGINE_BLOCK_SIZE", "", ["block_size = ''", "integer"]),
        ("OCTAVO_ENGINE_BLOCK_SIZE", "0", ["block_size = '0'", "1"]),
        ("OCTAVO_ENGINE_BLOCKSIZE", "4", ["blocksize", "unknown setting"]),
        ("OCTAVO_ENGINE_", "4", ["unknown setting"]),
        ("OCTAVO_ENGINE_SLO", "4", ["slo = '4'"]),
        ("OCTAVO_ENGINE_SLO_TTFT_S", "nan", ["slo.ttft_s = 'nan'", "finite"]),
        ("OCTAVO_ENGINE_SLO_P99", "1", ["slo.p99 = '1'", "tpot_s"]),
        ("OCTAVO_ENGINE_KV_CACHE_BYTES", "lots", ["kv_cache_bytes = 'lots'", '"2GiB"']),
    ],
)
def test_bad_environment_is_refused(
    tmp_path: Path, name: str, value: str, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, 'model = "m"'), {name: value})
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("text", ["model = ", "= 5", "[slo", 'model = "a"\nmodel = "b"', "\0"])
def test_bad_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.toml: "):
        load_config(write(tmp_path, text), {})


def test_what_is_no_table_is_refused_with_an_override(tmp_path: Path) -> None:
    toml = write(tmp_path, 'model = "m"\nslo = 5')
    with pytest.raises(ConfigError, match="slo = 5"):
        load_config(toml, {"OCTAVO_ENGINE_SLO_TTFT_S": "1"})


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        load_config(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path, {})
    (tmp_path / "engine.toml").write_bytes(b'model = "\xff"')
    with pytest.raises(ConfigError, match=r"engine\.toml: "):
        load_config(tmp_path / "engine.toml", {})


@pytest.mark.parametrize(
    ("value", "expected"), [("1-1", (1, 1)), (" 100 - 1099 ", (100, 1099)), ("7-9", (7, 9))]
)
def test_steps_to_record(value: str, expected: tuple[int, int]) -> None:
    assert make_config(model="m", profile_steps=value).profile_steps == expected
    assert make_config(model="m").profile_steps is None


@pytest.mark.parametrize(
    "value", ["", "5", "5-", "-5", "0-3", "9-8", "1-1001", "a-b", 7, True, "1-2-3"], ids=shown
)
def test_steps_to_record_are_a_short_range(value: object) -> None:
    assert_refused(f"profile_steps = {value!r}: should be", profile_steps=value)
