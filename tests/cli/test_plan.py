"""`octavo plan` and `octavo plan contracts` as their users run them."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from octavo.cli.app import app
from octavo.cli.plan_options import DEFAULT_TPOT_S, DEFAULT_TTFT_S
from octavo.config import SLO

ROOT = Path(__file__).parents[2]
LOG_LINE = {
    "arrival_s": 1.8e9, "tenant": "a", "prompt_tokens": 900, "cached_tokens": 512,
    "output_tokens": 100, "finish_reason": "stop", "ttft_s": 0.3, "e2e_s": 4.0,
}  # fmt: skip


def octavo(*arguments: object, code: int = 0) -> str:
    """What it says on stdout and stderr together."""
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return re.sub(r"[ \n]+", " ", done.output)


def refused(*arguments: object) -> str:
    """The one sentence of bad input."""
    said = octavo(*arguments, code=2)
    assert said.count("octavo: ") == 1 and "Traceback" not in said
    return said.partition("octavo: ")[2]


def test_a_well_known_model_is_planned_within_a_second_and_without_torch() -> None:
    program = (
        "import sys; from octavo.cli.app import app\n"
        "try: app(['plan', 'llama-3.1-8b', '--hardware', 'h200'], standalone_mode=True)\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "backend")},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # CPU time: others may be at work here.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert "KV memory 102 GiB · a token 128 KiB · a request 160 MiB" in done.stdout
    assert "weights bfloat16 654 1,288" in re.sub(" +", " ", done.stdout)
    assert "max_num_seqs: it stops the batch at 256" in done.stdout


def test_the_example_of_a_32k_prompt_with_and_without_grouped_queries() -> None:
    for name, need in (
        ("llama-3.1-70b", "a request 10.0 GiB"),
        ("llama-3.1-70b-without-gqa", "a request 80.0 GiB"),
    ):
        said = octavo(
            name, "--hardware=b200", "--prompt=32768", "--output=1", "--weights=int4", "--ttft=60"
        )
        assert need in said


def test_machines_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    said = octavo("llama-3.1-8b", "--hardware=h200,p5.48xlarge,g5.12xlarge", "--shared=512",
                  "--rate=20", f"--json={path}")  # fmt: skip
    found = json.loads(path.read_text(encoding="utf-8"))["machines"]
    costs = {each["machine"]["name"]: each["bill"]["usd_per_million_good_tokens"] for each in found}
    cheapest = min(costs, key=lambda name: costs[name])
    assert f"{cheapest} is the cheapest" in said
    assert "h200 is priced as one of 8 in p5en.48xlarge" in said
    assert "old price: p5en.48xlarge, p5.48xlarge, g5.12xlarge of 2026-07-28" in said
    assert [stage["name"] for stage in found[0]["stages"]][:3] == [
        "contiguous KV memory", "paging", "sharing prefixes",
    ]  # fmt: skip


def test_the_same_accelerator_at_the_same_price_costs_the_same() -> None:
    said = octavo("llama-3.1-8b", "--hardware=h200,p5en.48xlarge")
    price = re.search(r"The cheapest, at the same cost: h200, p5en.48xlarge: (\S+) per", said)
    assert price and said.count(price[1]) == 3
    assert re.search(r"Note: no --rate is given: .* by 1 on h200, \S+ requests/s by 8 on", said)
    alone = octavo("llama-3.1-8b", "--hardware=p5en.48xlarge")
    assert f"per million good output tokens {price[1]}" in alone


def test_each_machine_has_the_price_that_is_given_for_it() -> None:
    found = json.loads(octavo("llama-3.1-8b", "--hardware=h200,l4", "--price=2,1", "--json=-"))
    costs = [each["machine_usd_per_hour"] for each in found["machines"]]
    assert costs == [2, 1]


def test_one_accelerator_has_its_share_of_reserved_and_spot_prices(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(
        '[machines."p5en.48xlarge"]\nusd_per_hour = 64\nreserved_usd_per_hour = 40\n'
        'spot_usd_per_hour = [8, 16]\nregion = "x"\nas_of = 2026-11-20\nsource = "offer"\n',
        encoding="utf-8",
    )
    found = json.loads(
        octavo("contracts", "llama-3.1-8b", "--hardware=h200", "--rate=4", f"--prices={path}",
               "--json=-")
    )  # fmt: skip
    terms = found["terms"]
    assert (terms["on_demand_usd_per_hour"], terms["reserved_usd_per_hour"]) == (8, 5)
    assert terms["spot"]["usd_per_hour"] == 2
    assert not any("no reserved price" in note for note in found["notes"])


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    said = refused(*CONTRACTS, "--rate=4", f"--plot={path}", f"--html={tmp_path / '.' / 'x.png'}")
    assert said == f"--html = {path}: --plot writes that file; name another " and not path.exists()


def test_an_api_is_not_compared_with_requests_that_it_does_not_take() -> None:
    said = refused("contracts", "llama-3.1-8b", "--hardware=h200", "--rate=4", "--prompt=33000",
                   "--api=openrouter/mistralai/mistral-7b-instruct")  # fmt: skip
    assert "a prompt of 33000 tokens is more than its max_input_tokens = 32768" in said


def test_a_machine_is_compared_once() -> None:
    once = octavo("llama-3.1-8b", "--hardware=h200")
    assert octavo("llama-3.1-8b", "--hardware=h200,h200") == once


def test_accelerators_that_are_paid_for_idle_are_named() -> None:
    said = octavo("llama-3.1-8b", "--hardware=h200,p5en.48xlarge", "--rate=30")
    assert "at 30 requests/s 5 of 8 accelerators on p5en.48xlarge are paid for idle" in said
    assert "h200 is the cheapest" in said and "in p5en.48xlarge, which is rented as a whole" in said
    assert "on h200 are paid for idle" not in said and "no --rate" not in said


def test_a_folder_and_a_file_are_planned_too(tmp_path: Path) -> None:
    folder = ROOT / "models" / "octavo-tiny"
    for model in (folder, folder / "config.json", "octavo-tiny"):
        said = octavo(model, "--hardware=xeon-8480", "--prompt=100", "--output=50", "--price=2")
        assert said.startswith("octavo-tiny: 100 prompt + 50 output tokens")
        assert "dollars an hour, 1 × xeon-8480 $2.00" in said
        assert "old price" not in said


def test_json_on_stdout_is_only_json() -> None:
    done = CliRunner().invoke(app, ["plan", "qwen3-8b", "--hardware=l4", "--json=-"])
    found = json.loads(done.stdout)
    assert found["machines"][0]["bill"] is None, "no price of an L4 is known"
    assert found["is_assumed"] is True


def test_constants_are_used(tmp_path: Path) -> None:
    path = tmp_path / "constants.json"
    values = {"read_ratio": 0.35, "int4_read_ratio": 0.18, "kv_read_ratio": 0.3,
              "decode_compute_ratio": 0.25, "prefill_compute_ratio": 0.25,
              "step_overhead_s": 7e-4}  # fmt: skip
    path.write_text(json.dumps({"efficiency": values}), encoding="utf-8")
    tpots = []
    for more in ((), (f"--constants={path}",)):
        output = (
            CliRunner()
            .invoke(app, ["plan", "llama-3.1-8b", "--hardware=h200", "--json=-", *more])
            .stdout
        )
        tpots.append(json.loads(output)["machines"][0]["lone"]["tpot_s"])
    assert tpots[1] == pytest.approx(2 * tpots[0])
    path.write_text(json.dumps({**values, "read_ratio": 0}), encoding="utf-8")
    assert "read_ratio = 0: a finite number is expected, above 0" in refused(
        "llama-3.1-8b", "--hardware=h200", f"--constants={path}"
    )
    path.write_text(json.dumps({**values, "kv_read_ratio": 1.01}), encoding="utf-8")
    assert "kv_read_ratio = 1.01: a finite number is expected, above 0, at most 1" in refused(
        "llama-3.1-8b", "--hardware=h200", f"--constants={path}"
    )
    path.write_text(json.dumps({**values, "kv_read_ratio": 1.0}), encoding="utf-8")
    octavo("llama-3.1-8b", "--hardware=h200", f"--constants={path}")
    path.write_text("{}", encoding="utf-8")
    assert "an object with read_ratio, " in refused(
        "llama-3.1-8b", "--hardware=h200", f"--constants={path}"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hardware=h200"], "MODEL is missing; known: llama-3.1-8b, "),
        (["gpt-9", "--hardware=h200"], "model = 'gpt-9': no such folder or config.json"),
        (["llama-3.1-8b"], "--hardware: give NAME"),
        (["llama-3.1-8b", "--hardware=h300"], "hardware = 'h300': known are a100-40"),
        (["llama-3.1-8b", "--hardware=h200", "--price=-1"], "--price = -1.0: .* 0 or more"),
        (["llama-3.1-8b", "--hardware=h200,l4", "--price=2"],
         r"--price = 2: 1 for 2 machine\(s\), h200, l4; give one for each"),
        (["llama-3.1-8b", "--hardware=h200,l4", "--price=2,-1"], "--price = -1.0: .* 0 or more"),
        (["llama-3.1-8b", "--hardware=h200", "--price=,"], "--price = ,: 2 for 1 machine"),
        (["llama-3.1-8b", "--hardware=h200", "--price=low"], "--price = low: dollars per hour"),
        (["llama-3.1-8b", "--hardware=h200", "--price=nan"], "--price = nan: a finite number"),
        (["llama-3.1-8b", "--hardware=h200", "--rate=0"], "--rate = 0.0: .* above 0"),
        (["llama-3.1-8b", "--hardware=h200", "--load=1.1"], "--load = 1.1: .* at most 1"),
        (["llama-3.1-8b", "--hardware=h200", "--prompt=0"], "--prompt = 0: .* 1 or more"),
        (["llama-3.1-8b", "--hardware=h200", "--shared=2000"], "--shared = 2000: .* at most 1024"),
        (["llama-3.1-8b", "--hardware=h200", "--prompt=200000"], "contexts of up to 131072 tokens"),
        (["llama-3.1-8b", "--hardware=h200", "--kv-memory=900GiB"],
         r"--kv-memory = 900 GiB: \S+ GiB of h200 are left"),
        (["llama-3.1-8b", "--hardware=h200", "--max-model-len=0"],
         "--max-model-len = 0: .* 1 or more"),
        (["llama-3.1-8b", "--hardware=h200", "--max-model-len=-5"],
         "--max-model-len = -5: .* 1 or more"),
        (["llama-3.1-8b", "--hardware=h200", "--max-model-len=100"],
         "--max-model-len = 100: the prompt and its output are 1280 tokens; .* up to 131072"),
        (["llama-3.1-8b", "--hardware=h200", "--kv-memory=lots"], "--kv-memory = lots: should be"),
        (["llama-3.1-70b", "--hardware=h200"], "Weights: the weights .131 GiB. leave no KV memory"),
        (["llama-3.1-8b", "--hardware=l4", "--tpot=0.01"],
         "SLO: no batch meets it on l4: one request alone has a TTFT of"),
        (["octavo-tiny", "--hardware=h200", "--weights=int4", "--prices=nowhere.toml"],
         "nowhere.toml: no such file"),
        (["llama-3.1-8b", "--hardware=h200", "--json=/nowhere/plan.json"], "no folder /nowhere"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(arguments: list[str], said: str) -> None:
    assert re.search(said, refused(*arguments))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_config_without_a_key_is_refused(key: str, tmp_path: Path) -> None:
    text = (ROOT / "models" / "octavo-tiny" / "config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    del config[key]
    for name in ("config.json", "my-llama.json"):
        path = tmp_path / name
        path.write_text(json.dumps(config), encoding="utf-8")
        said = refused(path, "--hardware=h200")
        assert said.startswith(f"{path}: {key} is missing; a whole number")
    assert refused(tmp_path, "--hardware=h200").startswith(f"{tmp_path / 'config.json'}: {key} is")
    path.write_text(json.dumps({**config, "architectures": ["Gpt9"]}), encoding="utf-8")
    said = refused(path, "--hardware=h200")
    assert said.startswith(f"{path}: architectures = ['Gpt9'] is not supported")


def config_file(folder: Path, **keys: Any) -> Path:
    """octavo-tiny's with `keys` in place of its own; without those that are None."""
    text = (ROOT / "models" / "octavo-tiny" / "config.json").read_text(encoding="utf-8")
    changed = {**json.loads(text), **keys}
    path = folder / "config.json"
    left = {key: value for key, value in changed.items() if value is not None}
    path.write_text(json.dumps(left), encoding="utf-8")
    return path


def test_a_config_that_names_no_dtype_says_so(tmp_path: Path) -> None:
    path = config_file(tmp_path, torch_dtype=None)
    own = [path, "--hardware=h200", "--prompt=64", "--output=16"]
    said = refused(*own)
    assert "no torch_dtype and is taken as float32; no peak for float32 is known of h200" in said
    assert "name --dtype bfloat16" in said
    assert "no torch_dtype" not in octavo(*own, "--dtype=bfloat16")
    assert "no torch_dtype" not in octavo(config_file(tmp_path, torch_dtype=None, dtype="float16"),
                                          *own[1:])  # fmt: skip
    named = refused(config_file(tmp_path, torch_dtype="float32"), *own[1:])
    assert "no peak for float32 is known" in named and "no torch_dtype" not in named


def test_float16_is_planned_in_bfloat16_where_that_alone_has_a_peak() -> None:
    own = ["llama-2-7b", "--prompt=200", "--output=50", "--tpot=1", "--ttft=60"]
    said = octavo(*own, "--hardware=m7i.metal-24xl,h200")
    note = "llama-2-7b is float16, of which no peak of xeon-8488c is known: planned in bfloat16"
    assert said.count("is float16") == 1 and note in said and "is the cheapest" in said
    rented = octavo("contracts", *own, "--hardware=m7i.metal-24xl", "--rate=0.1", "--json=-")
    assert any(note in each for each in json.loads(rented)["notes"])


def test_a_machine_that_cannot_stops_no_comparison(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    said = octavo("llama-3.1-8b", "--hardware=l4,h200", "--kv-memory=60GiB", f"--json={path}")
    assert (
        re.search(r"l4: --kv-memory = 60 GiB: .* are left", said)
        and "largest batch within the SLO – 256" in said
    )
    first, second = json.loads(path.read_text(encoding="utf-8"))["machines"]
    assert first["best"] is None and "left" in first["limit_sentence"]
    assert second["best"]["batch"] == 256
    assert "of l4 are left" in refused("llama-3.1-8b", "--hardware=l4,l4", "--kv-memory=60GiB")


def test_rows_that_int4_cannot_group_are_planned_in_bf16(tmp_path: Path) -> None:
    path = config_file(tmp_path, hidden_size=64, intermediate_size=172)
    said = octavo(path, "--hardware=h200", "--prompt=64", "--output=16")
    assert "Note: weights in int4 are left out: " in said and "rows of 172 weights" in said
    assert "weights in int4 *" not in said and "weights int4 – –" in said


def test_prices_of_the_operator(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    row = '[machines."p5.4xlarge"]\nusd_per_hour = {}\nregion = "x"\nas_of = 2026-11-20\n'
    path.write_text(row.format(2.5) + 'source = "offer"\n', encoding="utf-8")
    said = octavo("llama-3.1-8b", "--hardware=p5.4xlarge", f"--prices={path}")
    assert "dollars an hour, 1 × p5.4xlarge $2.50" in said
    path.write_text(row.format(-2.5) + 'source = "offer"\n', encoding="utf-8")
    assert "machines.p5.4xlarge.usd_per_hour = -2.5: " in refused(
        "llama-3.1-8b", "--hardware=p5.4xlarge", f"--prices={path}"
    )


@pytest.mark.slow
def test_this_machine_is_measured() -> None:
    found = json.loads(
        octavo("octavo-tiny", "--measured", "--ttft=1000", "--tpot=1000", "--json=-")
    )
    own = found["machines"][0]["machine"]["accelerator"]
    assert own["name"] == "this machine" and own["read_bytes_per_s"] > 1e8
    assert own["flops_per_s"]["bfloat16"] > 1e9
    assert found["machines"][0]["best"]["batch"] == 32


def test_what_is_known_is_listed() -> None:
    said = octavo("--list")
    assert "llama-3.1-70b" in said and "p5.48xlarge" in said and "groq/llama-3.1-8b" in said


CONTRACTS = ["contracts", "llama-3.1-8b", "--hardware=m7i.metal-24xl"]
FORECAST = ["--rate=4", "--peak=1.8", "--api=groq/llama-3.3-70b-versatile", "--reserved=3.1",
            "--capital=15000", "--power=0.8", "--kwh=0.2"]  # fmt: skip


def test_five_contracts_are_compared_and_drawn(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"c.{kind}" for kind in ("json", "png", "html")}
    said = octavo(*CONTRACTS, *FORECAST, f"--json={files['json']}", f"--plot={files['png']}",
                  f"--html={files['html']}")  # fmt: skip
    found = json.loads(files["json"].read_text(encoding="utf-8"))
    costs = [each["usd_per_month"] for each in found["contracts"]]
    assert len(costs) == 5 and costs == sorted(costs)
    assert f"Cheapest: {found['contracts'][0]['name']}, " in said
    assert "the newsvendor rule takes a floor of" in said and "no other that was tried" in said
    for name in ("on demand", "token API", "reserved", "on premise", "hybrid"):
        assert name in said
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    page = files["html"].read_text(encoding="utf-8")
    assert page.count("<svg") == 3 and "http-equiv" not in page and "src=" not in page
    again = octavo(*CONTRACTS, *FORECAST)
    assert again == said, "the simulation is seeded"


def test_spot_without_a_commitment_has_no_floor() -> None:
    said = octavo("contracts", "llama-3.1-8b", "--hardware=p5.48xlarge", "--rate=40")
    assert "no floor (nothing to commit to has a price)" in said and "no other to try" in said
    found = json.loads(
        octavo("contracts", "llama-3.1-8b", "--hardware=p5.48xlarge", "--rate=400", "--json=-")
    )
    assert [each["floor"] for each in found["simulated"]] == [0]
    assert found["floor"] == found["newsvendor_floor"] == 0


def test_a_floor_other_than_the_rules_is_explained() -> None:
    said = octavo("contracts", "llama-3.1-8b", "--hardware=p5.4xlarge", "--rate=40", "--reserved=4",
                  "--start=7200")  # fmt: skip
    assert "the newsvendor rule takes a floor of 3; " in said
    assert "starts cost (7200 s each, " in said and "a floor of 4 is the cheapest and" in said
    assert "no other that was tried costs less" in said


def test_a_measured_capacity_is_of_the_logs_requests(tmp_path: Path) -> None:
    # 1,080 requests in an hour, one for 10 s of an engine: 3 of them, however long the answers are.
    lines = [{**LOG_LINE, "arrival_s": 1.8e9 + at / 0.3, "output_tokens": 1 + (at % 5 < 2),
              "e2e_s": 1 / 0.3} for at in range(1080)]  # fmt: skip
    log = write_log(tmp_path / "log.jsonl", *lines)
    found = json.loads(octavo("contracts", "llama-3.1-8b", P5, f"--traffic={log}", "--capacity=0.1",
                              "--load=1", "--reserved=1", "--json=-"))  # fmt: skip
    assert [each["most_machines"] for each in found["contracts"]] == [3, 3, 3]
    terms, total = found["terms"], found["traffic"]
    engine_s = (total["prompt_tokens"] - total["cached_tokens"]) * terms["engine"]["prefill_s"]
    engine_s += total["output_tokens"] * terms["engine"]["decode_s"]
    assert engine_s == pytest.approx(1080 / 0.1)


def write_log(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_recorded_traffic_is_priced(tmp_path: Path) -> None:
    lines = [{**LOG_LINE, "arrival_s": 1.8e9 + 600 * i, "ttft_s": 0.3 if i % 4 else 5.0}
             for i in range(6 * 24 * 2)]  # fmt: skip
    log = write_log(tmp_path / "log.jsonl", *lines)
    said = octavo(*CONTRACTS, f"--traffic={log}", "--api=groq/llama-3.3-70b-versatile", "--json=-")
    found = json.loads(said)
    assert found["slo_ratio"] == 0.75
    api = next(each for each in found["contracts"] if each["name"] == "token API")
    # Of 288 requests, ten minutes apart; the last one ends after 4 s.
    usd = 288 * (900 * 5.9e-7 + 100 * 7.9e-7)
    assert api["usd_per_month"] == pytest.approx(usd * 730 * 3600 / (287 * 600 + 4))
    assert "reserved" not in [each["name"] for each in found["contracts"]]
    assert any("no reserved price: none is invented" in note for note in found["notes"])
    assert any("serves another model than llama-3.1-8b" in note for note in found["notes"])
    write_log(log, *lines, {**LOG_LINE, "arrival_s": 1.8e9, "prompt_tokens": 128_001})
    said = refused(*CONTRACTS, f"--traffic={log}", "--api=groq/llama-3.3-70b-versatile")
    assert "a prompt of 128001 tokens is more than its max_input_tokens = 128000" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "traffic: give --traffic FILE, a recorded log, or --rate"),
        (["--rate=4", "--reserved=-3"], "--reserved = -3.0: .* 0 or more"),
        (["--rate=4", "--spot=inf"], "--spot = inf: a finite number"),
        (["--rate=4", "--peak=3"], "--peak = 3.0: .* at most 2"),
        (["--rate=4", "--capital=1000"], "--kwh is missing"),
        (["--rate=4", "--capital=1000", "--kwh=0.1"], "--power is missing: no power of m7i"),
        (["--rate=4", "--api=acme/one"], "price of API model = 'acme/one': known are groq/"),
        (["--rate=4", "--capacity=0"], "--capacity = 0.0: .* 1e-06 or more"),
        (["--rate=4", "--tpot=0.001"], "SLO: no batch meets it on m7i.metal-24xl"),
        (["--traffic=nowhere.jsonl"], "traffic log nowhere.jsonl: .*No such file"),
    ],
)
def test_bad_offers_are_one_sentence(arguments: list[str], said: str) -> None:
    assert re.search(said, refused(*CONTRACTS, *arguments))


P5 = "--hardware=p5.4xlarge"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate=1.7e308"], r"--rate = 1.7e\+308: .* at most 1e\+06"),
        (["--rate=1e-320"], "--rate = .*: a finite number is expected, 1e-06 or more"),
        (["--rate=4", "--load=1e-320"], "--load = 1e-320: .* 0.01 or more"),
        (["--rate=4", "--capacity=1e-310"], "--capacity = 1e-310: .* 1e-06 or more"),
        (["--rate=1e6", "--capacity=1e-6"], "peak needs .* machines of m7i.*: at most 1,000,000"),
        (["--rate=4", "--growth=10"], "--growth = 10.0: .* at most 1"),
        (["--rate=4", "--growth=1", "--months=60"],
         r"--growth = 1 in --months = 60: traffic would grow 5.76e\+17 times, at most 1,000"),
        (["--rate=4", "--reserved=1e300"], r"--reserved = 1e\+300: .* at most 1e\+06"),
        (["--rate=4", "--capital=1", "--kwh=1", "--power=1", "--years=1e-310"],
         "--years = 1e-310: .* 0.1 or more"),
    ],
)  # fmt: skip
def test_figures_beyond_reason_are_one_sentence(arguments: list[str], said: str) -> None:
    assert re.search(said, refused(*CONTRACTS, *arguments))


@pytest.mark.parametrize(
    "option",
    ["--prompt=1024", "--output=256", "--shared=0", "--peak=9", "--weekend=1", "--growth=0",
     "--months=1"],
)  # fmt: skip
def test_an_option_of_a_forecast_is_refused_with_a_log(option: str, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", LOG_LINE)
    name = option.partition("=")[0]
    said = refused(*CONTRACTS, f"--traffic={log}", option)
    assert said.startswith(f"{name} is of a forecast, and --traffic is recorded")


@pytest.mark.parametrize("name", ["--years", "--power", "--kwh", "--pue", "--operation"])
def test_an_option_of_own_machines_is_refused_without_one(name: str) -> None:
    said = refused(*CONTRACTS, "--rate=4", f"{name}=2")
    assert said.startswith(f"{name} is of a machine that is bought; give --capital")


@pytest.mark.parametrize("name", ["--interruptions", "--interruption", "--spot-availability"])
def test_an_option_of_spot_is_refused_without_its_price(name: str) -> None:
    said = refused("contracts", "llama-3.1-8b", P5, "--rate=4", f"{name}=1")
    assert said.startswith(f"{name} is of spot, of which no price is known; give --spot")


def test_no_name_and_no_number_is_cut_off() -> None:
    said = octavo("contracts", "llama-3.1-8b", "--hardware=p5.48xlarge", "--rate=4000",
                  "--reserved=30", "--capital=300000", "--kwh=0.2", "--growth=1", "--months=6",
                  "--api=groq/llama-3.1-8b-instant")  # fmt: skip
    assert "…" not in said and "speed of an engine $" in said
    assert re.search(r"reserved price \$[0-9,]{9,} – \$[0-9,]{9,}", said)


def test_machines_may_cost_nothing(tmp_path: Path) -> None:
    said = octavo("contracts", "llama-3.1-8b", P5, "--rate=40", "--price=0", "--reserved=1",
                  f"--plot={tmp_path / 'free.png'}")  # fmt: skip
    assert "Cheapest: on demand, $0 a month, as much as hybrid;" in said
    octavo("contracts", "llama-3.1-8b", P5, "--rate=40", "--price=0", "--reserved=0",
           f"--plot={tmp_path / 'free.png'}")  # fmt: skip


def test_a_saving_is_a_share_of_what_it_is_saved_from() -> None:
    from octavo.cli import plan_contract_tables as tables
    from octavo.planner.simulation import Simulated

    def told(*usd: float) -> str:
        tried = [Simulated(floor, each, 0.0, 0.0) for floor, each in enumerate(usd)]
        terms = SimpleNamespace(uses_spot=False)
        return tables._simulated(SimpleNamespace(simulated=tried, floor=0, terms=terms))  # type: ignore[arg-type]

    assert "though a floor of 1 costs 26.5% less" in told(7942.0, 5840.0)
    assert "no other that was tried costs even 0.1% less" in told(10_000.0, 9_999.0)
    assert "no other that was tried costs less" in told(10_000.0, 10_000.0)


def test_a_floor_is_one_for_a_year_that_grows() -> None:
    found = json.loads(octavo("contracts", "llama-3.1-8b", P5, "--rate=40", "--growth=0.15",
                              "--months=12", "--reserved=4", "--json=-"))  # fmt: skip
    hybrid = next(each for each in found["contracts"] if each["name"] == "hybrid")
    assert hybrid["committed_machines"] == found["floor"]
    # A floor of its own would cost less in the last month: that is not what was bought.
    last = json.loads(octavo("contracts", "llama-3.1-8b", P5, f"--rate={40 * 1.15**11}",
                             "--reserved=4", "--json=-"))  # fmt: skip
    alone = next(each for each in last["contracts"] if each["name"] == "hybrid")
    assert alone["committed_machines"] > hybrid["committed_machines"]
    assert hybrid["worst_usd_per_month"] > 1.1 * alone["usd_per_month"]


def test_spot_that_loses_is_said_to_be_unused() -> None:
    hardware = "--hardware=p5.48xlarge"
    said = octavo("contracts", "llama-3.1-8b", hardware, "--rate=40", "--interruptions=5.9999")
    assert "spot is not used: at 25.75 dollars an hour and 5.9999 interruptions" in said
    assert "spot is taken as" not in said
    assert "spot is taken as 25.75" in octavo("contracts", "llama-3.1-8b", hardware, "--rate=40")


def test_a_config_without_a_dtype_is_given_one(tmp_path: Path) -> None:
    text = (ROOT / "models" / "octavo-tiny" / "config.json").read_text(encoding="utf-8")
    config = {key: each for key, each in json.loads(text).items() if "dtype" not in key}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    own = ["contracts", path, P5, "--rate=4", "--prompt=100", "--output=50"]
    assert "no peak for float32 is known" in refused(*own)
    assert "Only on demand has a price" in octavo(*own, "--dtype=bfloat16")


@pytest.mark.parametrize("out", [[], ["--json=-"]])
def test_files_are_there_although_the_reader_has_left(out: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "c.png"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", "from octavo.cli.app import app; app()", "plan", *CONTRACTS,
         "--rate=4", f"--plot={picture}", *out],
        stdout=write, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "backend")},
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 0 and done.stderr == ""
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_plan_ends_quietly_when_its_reader_has_left() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", "from octavo.cli.app import app; app()", "plan", "llama-3.1-8b",
         "--hardware=h200"],
        stdout=write, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "backend")},
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 0 and done.stderr == ""


def test_a_log_of_seconds_is_warned_about(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", LOG_LINE)
    page = tmp_path / "c.html"
    said = octavo(*CONTRACTS, f"--traffic={log}", f"--html={page}", "--reserved=0.1")
    # The hybrid is all reserved then: what costs the same has not become the cheapest.
    assert "Cheapest: reserved, $146.00 a month, as much as hybrid;" in said
    assert "20% hybrid" not in page.read_text(encoding="utf-8")
    warning = "Warning: the log spans 4 s, and a month is made of 657,000 times the same"
    assert warning in said and warning in page.read_text(encoding="utf-8")
    write_log(log, LOG_LINE, {**LOG_LINE, "arrival_s": 1.8e9 + 3600})
    assert "Warning" not in octavo(*CONTRACTS, f"--traffic={log}")


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl")
    assert "log.jsonl: it holds no request" in refused(*CONTRACTS, f"--traffic={log}")
    write_log(log, {**LOG_LINE, "output_tokens": -3})
    assert "line 1: output_tokens = -3: " in refused(*CONTRACTS, f"--traffic={log}")


def test_help_teaches_with_an_example() -> None:
    for arguments in (["--help"], ["model", "--help"], ["contracts", "--help"]):
        assert "Try: octavo plan" in octavo(*arguments)


def test_the_slo_is_the_servers() -> None:
    assert (SLO().ttft_s, SLO().tpot_s) == (DEFAULT_TTFT_S, DEFAULT_TPOT_S)
