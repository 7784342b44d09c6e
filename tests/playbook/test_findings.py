"""What is kept, what is counted, and what is said of it."""

import pytest

from octavo.playbook.verdict import nothing_is_good, sentence
from tests.playbook.findings import RATES, findings


def test_cost_is_the_machines_time_and_a_share_of_0b() -> None:
    found = findings()
    costs = {row.stage.key: row.cost for row in found.rows}
    # 10 good tokens a second: 100,000 seconds for a million; 0b has 2.
    prefix = costs["prefix"]
    assert prefix is not None and prefix.machine_s == 100_000 and prefix.usd is None
    assert prefix.ratio == pytest.approx(0.2)


def test_a_price_makes_dollars_of_it() -> None:
    prefix = findings(usd_per_hour=3.6).rows[4]
    assert prefix.stage.key == "prefix" and prefix.cost is not None
    assert prefix.cost.usd == pytest.approx(100.0)  # 100,000 s at 0.001 USD


def test_the_waterfall_ends_with_the_last_kept_stage() -> None:
    steps = findings().waterfall
    assert [step.row.stage.key for step in steps] == [
        "paged", "continuous", "prefix", "kv-int8", "weights-int4",
    ]  # fmt: skip
    assert sum(step.fall.saved for step in steps) == pytest.approx(1 - 2 / 20)
    assert steps[0].fall.before == 1 and steps[-1].fall.after == pytest.approx(0.1)


@pytest.mark.parametrize("judged", ["fail", "inconclusive"])
def test_what_the_gate_refuses_is_not_counted(judged: str) -> None:
    found = findings(weights=judged)  # type: ignore[arg-type]
    assert found.waterfall[-1].row.stage.key == "kv-int8"
    proven = found.last_proven
    assert proven is not None and proven.stage.key == "kv-int8"
    said = sentence(found)
    assert f"the gate says {judged}" in said and "not adopted" in said
    assert "All that is proven together costs 88% less" in said  # 2 → 16


def test_later_stages_do_without_what_was_refused() -> None:
    found = findings(kv="fail")
    assert [step.row.stage.key for step in found.waterfall][-2:] == ["prefix", "weights-int4"]
    last = found.rows[-1]
    assert last.stage.kv == "auto" and last.stage.weights == "int4"


def test_a_model_without_signal_proves_nothing_of_quantization() -> None:
    found = findings(kv="no signal", weights="no signal")
    assert found.waterfall[-1].row.stage.key == "weights-int4", "its speed is measured"
    proven = found.last_proven
    assert proven is not None and proven.stage.key == "prefix"
    assert sentence(found).count("this model cannot read the text") == 2
    assert "cost 80% less than with contiguous memory" in sentence(found)


def test_a_stage_that_costs_more_is_not_called_a_saving() -> None:
    found = findings({**RATES, "kv-int8": 5}, weights="fail")
    assert "The cheapest proven stage is 3 prefix cache" in sentence(found)
    dear = findings({**RATES, "prefix": 1})
    assert "cost 100% more than with contiguous memory" in sentence(dear)


def test_a_stage_that_met_the_slo_for_no_request_gets_no_credit() -> None:
    last = sentence(findings({**RATES, "prefix": 0}))
    assert last.startswith("With paged KV memory and continuous batching a million good tokens")
    assert "No request met the SLO with 3 prefix cache." in last
    middle = sentence(findings({**RATES, "paged": 0}))
    assert middle.startswith("With paged KV memory, continuous batching and the prefix cache a")
    none = sentence(findings({key: 2 if key == "contiguous" else 0 for key in RATES}))
    assert none.startswith("No request met the SLO with 1 paged KV, 2 continuous, 3 prefix cache (")
    assert "0% less" not in none and "Int8 KV memory: no request met the SLO." in none


def test_a_skipped_stage_is_there_with_its_reason() -> None:
    rates = {key: rate for key, rate in RATES.items() if key != "generate"}
    row = findings(rates, skipped={"generate": "it is not installed"}).rows[0]
    assert row.figures is None and row.skipped == "it is not installed" and not row.is_kept


def test_without_0b_there_is_no_share() -> None:
    found = findings({**RATES, "contiguous": 0})
    assert found.waterfall == [] and "met the SLO for no request" in sentence(found)
    prefix = found.rows[4].cost
    assert prefix is not None and prefix.ratio is None
    assert nothing_is_good(found) is None


def test_an_slo_that_no_stage_meets_is_a_clear_sentence() -> None:
    said = nothing_is_good(findings(dict.fromkeys(RATES, 0), slo_ttft_s=1.5))
    assert said is not None
    for part in ("no request of any stage", "1.5 s", "9 and 0.01 s", "--slo-ttft-s"):
        assert part in said, part


def test_the_load_is_the_first_rounds() -> None:
    """Another round, in which it was by chance another one that was best, changes no load."""
    from octavo.config import SLO
    from octavo.playbook.findings import at_load
    from tests.playbook.samples import sample

    samples = [
        sample(users=4, good=5), sample(users=8, good=9),
        sample(users=8, good=6, round=1), sample(users=8, good=7, round=2),
    ]  # fmt: skip
    assert [each.round for each in at_load(samples, SLO())] == [0, 1, 2]
