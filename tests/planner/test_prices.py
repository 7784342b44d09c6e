"""Prices and hardware: dated, sourced, refused if they cannot be."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.planner import hardware, prices
from octavo.planner.hardware import find_machine
from octavo.planner.prices import load_prices

OWN = load_prices()
GOOD = """
[machines."p5.48xlarge"]
usd_per_hour = 40
reserved_usd_per_hour = 30
spot_usd_per_hour = [9, 10]
region = "eu-west-1"
as_of = 2026-11-20
source = "our contract"
"""

API = """
[models."acme/one"]
input_cost_per_token = 1e-6
output_cost_per_token = 2e-6
region = "global"
as_of = 2026-11-20
source = "offer"
"""


def test_every_price_has_a_source_a_region_and_a_date_that_has_been() -> None:
    for price in [*OWN.machines.values(), *OWN.models.values()]:
        assert price.quote.source.startswith("https://") and price.quote.region
        assert price.quote.as_of < date.today()
    for machine in OWN.machines.values():
        assert machine.reserved_usd_per_hour is None, "none is invented"
        assert machine.spot_usd_per_hour is None or machine.spot_usd_per_hour[1] < (
            machine.usd_per_hour
        )


def test_a_price_is_old_after_90_days() -> None:
    quote = OWN.machine("p5.48xlarge").quote
    assert not quote.is_stale(quote.as_of + timedelta(days=90))
    assert quote.is_stale(quote.as_of + timedelta(days=91))
    others = [OWN.machine("p5.48xlarge").quote, OWN.machine("p4d.24xlarge").quote]
    (note,) = prices.stale_notes(others, quote.as_of + timedelta(days=91))
    assert "p5.48xlarge, p4d.24xlarge of 2026-07-28, 91 days ago" in note and "https://" in note
    assert prices.stale_notes(others, quote.as_of) == []


def test_an_operators_file_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(GOOD, encoding="utf-8")
    found = load_prices(path)
    assert found.machine("p5.48xlarge").reserved_usd_per_hour == 30
    assert found.machine("p4d.24xlarge") == OWN.machine("p4d.24xlarge")
    with pytest.raises(ConfigError, match="price of machine = 'p9': known are p4d"):
        found.machine("p9")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("= 40", "= -1", r"machines.p5.48xlarge.usd_per_hour = -1: .* 0 or more"),
        ("= 40", "= inf", r"usd_per_hour = inf: a finite number"),
        ("= 40", "= nan", r"usd_per_hour = nan: a finite number"),
        ("= 40", "= true", r"usd_per_hour = True: a number is expected"),
        ("usd_per_hour = 40", "", r"usd_per_hour is missing"),
        ("= 30", '= "low"', r"reserved_usd_per_hour = 'low': a number"),
        ("[9, 10]", "[10, 9]", r"spot_usd_per_hour = \[10, 9\]: the lowest comes first"),
        ("[9, 10]", "9", r"spot_usd_per_hour = 9: \[lowest, highest\]"),
        ("reserved_usd_per_hour", "reserved_usd_per_hr",
         r"machines.p5.48xlarge.reserved_usd_per_hr = 30: no such field; did you mean reserved_usd_"
         r"per_hour\?"),
        ("reserved_usd_per_hour", "colour", r"colour = 30: no such field; fields: usd_per_hour, "),
        ("2026-11-20", '"soon"', r"as_of = 'soon': a date is expected"),
        ('"our contract"', '""', r"source = '': text is expected"),
        ("[machines", "[machinery", r"machinery: tables are machines and models"),
        ("]\n", "\n", r"prices.toml: "),
    ],
)  # fmt: skip
def test_a_bad_price_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_prices(path)


def test_an_accelerator_has_its_share_of_every_price(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(GOOD.replace("p5.48", "p5en.48"), encoding="utf-8")
    share = load_prices(path).of("h200")
    assert share is not None and share.quote.name == "p5en.48xlarge"
    assert (share.usd_per_hour, share.reserved_usd_per_hour) == (5, 3.75)
    assert share.spot_usd_per_hour == (9 / 8, 10 / 8)
    assert OWN.of("p5en.48xlarge") == OWN.machine("p5en.48xlarge") and OWN.of("l4") is None


def test_a_price_of_the_future_is_refused(tmp_path: Path) -> None:
    path, today = tmp_path / "prices.toml", date.today()
    tomorrow = today + timedelta(days=1)
    for row, name in (
        (GOOD, "machines.p5.48xlarge"),
        (API, "models.acme/one"),
    ):
        path.write_text(row.replace("2026-11-20", str(tomorrow)), encoding="utf-8")
        with pytest.raises(ConfigError, match=f"{name}.as_of = {tomorrow}: .* today, {today}"):
            load_prices(path)
        path.write_text(row.replace("2026-11-20", str(today)), encoding="utf-8")
        load_prices(path)


def test_an_api_takes_requests_up_to_its_limits() -> None:
    api = OWN.model("openrouter/mistralai/mistral-7b-instruct")
    api.check_serves(32_768, 8191)
    with pytest.raises(ConfigError, match=r"a prompt of 32769 tokens .* max_input_tokens = 32768"):
        api.check_serves(32_769, 1)
    with pytest.raises(ConfigError, match=r"an answer of 8192 tokens .* max_output_tokens = 8191"):
        api.check_serves(1, 8192)
    replace(api, max_input_tokens=None, max_output_tokens=None).check_serves(10**9, 10**9)


def test_an_api_of_another_model_is_said_to_be_one() -> None:
    api = OWN.model("groq/llama-3.1-8b-instant")
    assert api.other_model_note("llama-3.1-8b") is None
    assert api.other_model_note("Llama-3.1-8B-Instant") is None
    for other in ("llama-3.1-70b", "llama-3.2-1b", "my-llama"):
        assert f"serves another model than {other}" in str(api.other_model_note(other))


def test_litellms_other_fields_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(API + "supports_vision = true\n", encoding="utf-8")
    assert load_prices(path).model("acme/one").output_cost_per_token == 2e-6


def test_every_figure_of_the_catalog_has_a_source() -> None:
    for name in [*hardware.accelerator_names(), *hardware.instance_names()]:
        accelerator = find_machine(name).accelerator
        assert {"memory_bytes", "read_bytes_per_s", "flops_per_s"} <= set(accelerator.sources)
        assert all(source.startswith("https://") for source in accelerator.sources.values())
    assert set(OWN.machines) <= set(hardware.instance_names())


# "A datasheet" of FLOPs often counts zeros of 2:4 sparsity; ridges (FLOPs per byte) of dense
# bf16 as they are published for these: A100 153, H100 295, H200 206, L4 403.
@pytest.mark.parametrize(("name", "ridge"), [("a100", 153), ("h100", 295), ("h200", 206),
                                            ("l4", 403)])  # fmt: skip
def test_peaks_are_dense(name: str, ridge: int) -> None:
    own = find_machine(name).accelerator
    assert own.peak_flops_per_s("bfloat16") / own.read_bytes_per_s == pytest.approx(ridge, abs=1)


def test_machines_hold_accelerators() -> None:
    assert find_machine("p5.48xlarge").count == 8
    assert [m.name for m in hardware.machines_with("h100")] == ["p5.4xlarge", "p5.48xlarge"]
    with pytest.raises(ConfigError, match=r"hardware = 'h300': known are a100-40, .*p5.48xlarge"):
        find_machine("h300")
    with pytest.raises(ConfigError, match="l4: no peak for float32 is known"):
        find_machine("l4").accelerator.peak_flops_per_s("float32")
