"""Champion and challengers on a real ledger, with the simulated endpoint: refused, no evidence, promoted, rolled back."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from dangerous_driving.assessment.champion import current_version
from dangerous_driving.contracts import RiskLevel
from dangerous_driving.errors import ConfigError, GateRefusedError
from dangerous_driving.evaluation.gate import GateVerdict
from dangerous_driving.evaluation.promotion import nightly_rulings, promote, roll_back, rollback_target
from dangerous_driving.ledger.database import transaction
from dangerous_driving.ledger.evaluation_cases import set_cases
from dangerous_driving.ledger.promotions import Promotion, promotions

from .conftest import DAY, Bench, write_prompt

HIGH = RiskLevel.HIGH


def judged(bench: Bench, *, skill: float) -> None:
    """Both prompts answered: `a`, whose skill is 0.75, and `b`. (The calls themselves are in test_nightly_job.)"""
    write_prompt(bench.prompts, "b", skill=skill)
    bench.settings = bench.settings.model_copy(
        update={
            "evaluation": bench.settings.evaluation.model_copy(update={"challengers": ("b",), "held_out_share": 1.0})
        }
    )
    bench.add(120)
    for version in ("a", "b"):
        bench.answer(version)


def test_a_worse_prompt_is_refused_with_its_statistics(bench: Bench) -> None:
    judged(bench, skill=0.2)
    [ruling] = nightly_rulings(bench.settings, bench.engine, bench.store)
    assert ruling.decision.verdict is GateVerdict.REFUSED
    assert ruling.promotion is None
    assert "significantly worse on recall_high" in ruling.statistics
    assert "95 % interval" in ruling.statistics
    assert current_version(bench.settings.llm, bench.engine) == "a"
    assert b"refused" in bench.store.get(bench.store.key(ruling.report_url))
    with pytest.raises(GateRefusedError, match="significantly worse on recall_high"):
        promote(bench.settings, bench.engine, bench.store, "b", by="ann", accepts_no_evidence=True)
    assert promotions(bench.engine, limit=5) == []
    with transaction(bench.engine) as connection:
        kept = connection.execute(text("SELECT verdict, reasons, differences FROM prompt_decision ORDER BY id")).all()
    assert [row.verdict for row in kept] == ["refused", "refused"]  # both asked, both kept
    assert {item["metric"] for item in kept[0].differences} == set(bench.settings.evaluation.guarded)


def test_an_equal_prompt_is_no_evidence_and_a_person_may_promote_it_all_the_same(bench: Bench) -> None:
    judged(bench, skill=0.75)
    [ruling] = nightly_rulings(bench.settings, bench.engine, bench.store)
    assert ruling.decision.verdict is GateVerdict.NO_EVIDENCE
    assert ruling.compared.only_champion > 0  # they differ, but not more than chance does
    assert ruling.compared.only_challenger > 0
    assert ruling.promotion is None
    with pytest.raises(GateRefusedError, match="no evidence"):
        promote(bench.settings, bench.engine, bench.store, "b", by="ann")
    promote(bench.settings, bench.engine, bench.store, "b", by="ann", accepts_no_evidence=True, note="shorter")
    [made] = promotions(bench.engine, limit=5)
    assert (made.prompt_version, made.previous, made.promoted_by, made.note) == ("b", "a", "ann", "shorter")
    assert made.decision_id is not None


def test_a_better_prompt_is_promoted_and_rolled_back_and_not_promoted_again_by_itself(bench: Bench) -> None:
    judged(bench, skill=1.0)
    [ruling] = nightly_rulings(bench.settings, bench.engine, bench.store)
    assert ruling.decision.verdict is GateVerdict.BETTER
    assert current_version(bench.settings.llm, bench.engine) == "b"
    assert ruling.promotion is not None
    assert ruling.promotion.decision_id == ruling.decision_id
    assert nightly_rulings(bench.settings, bench.engine, bench.store) == []  # it is in use
    roll_back(bench.settings, bench.engine, by="ann", note="complaints")
    assert current_version(bench.settings.llm, bench.engine) == "a"
    [again] = nightly_rulings(bench.settings, bench.engine, bench.store)
    assert again.decision.verdict is GateVerdict.BETTER
    assert again.promotion is None
    assert current_version(bench.settings.llm, bench.engine) == "a"
    promote(bench.settings, bench.engine, bench.store, "b", by="ann")  # a person may
    assert current_version(bench.settings.llm, bench.engine) == "b"


def test_a_prompt_that_was_not_evaluated_on_the_newest_cases_cannot_be_promoted(bench: Bench) -> None:
    write_prompt(bench.prompts, "b", skill=1.0)
    bench.add(8)
    with pytest.raises(ConfigError, match="no set of cases"):
        promote(bench.settings, bench.engine, bench.store, "b", by="ann")
    bench.answer("a")
    with pytest.raises(ConfigError, match="prompts evaluate b"):
        promote(bench.settings, bench.engine, bench.store, "b", by="ann")
    with pytest.raises(ConfigError, match="is the prompt in use"):
        promote(bench.settings, bench.engine, bench.store, "a", by="ann")
    bench.answer("b")
    write_prompt(bench.prompts, "b", skill=0.9)
    with pytest.raises(ConfigError, match="changed since it was evaluated"):
        promote(bench.settings, bench.engine, bench.store, "b", by="ann")


def test_nothing_to_roll_back(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="nothing to go back to"):
        roll_back(bench.settings, bench.engine, by="ann")


def test_a_prompt_whose_file_was_changed_since_it_was_in_use_does_not_come_back_by_a_roll_back(bench: Bench) -> None:
    judged(bench, skill=0.75)
    promote(bench.settings, bench.engine, bench.store, "b", by="ann", accepts_no_evidence=True)
    # `a` was in use by the settings alone: its evaluation knows its file
    write_prompt(bench.prompts, "a", skill=0.1)
    with pytest.raises(ConfigError, match="prompt a: its file was changed since it was in use; restore the file"):
        roll_back(bench.settings, bench.engine, by="ann")
    assert current_version(bench.settings.llm, bench.engine) == "b"
    write_prompt(bench.prompts, "a", skill=0.75)
    roll_back(bench.settings, bench.engine, by="ann")
    # `b` was promoted: its promotion knows its file
    promote(bench.settings, bench.engine, bench.store, "b", by="ann", accepts_no_evidence=True)
    write_prompt(bench.prompts, "c", skill=0.75)
    bench.answer("c")
    promote(bench.settings, bench.engine, bench.store, "c", by="ann", accepts_no_evidence=True)
    write_prompt(bench.prompts, "b", skill=0.1)
    with pytest.raises(ConfigError, match="prompt b: its file was changed since it was in use"):
        roll_back(bench.settings, bench.engine, by="ann")
    write_prompt(bench.prompts, "b", skill=0.75)
    assert roll_back(bench.settings, bench.engine, by="ann").prompt_version == "b"


def test_a_roll_back_knows_the_file_for_several_groups_as_it_was_promoted(bench: Bench) -> None:
    judged(bench, skill=0.75)
    frame = bench.prompts / "b-frame.yaml"
    frame.write_text("version: b-frame\ndescription: d\ntakes: frame\nsystem: s\nuser: u")
    made = promote(bench.settings, bench.engine, bench.store, "b", by="ann", accepts_no_evidence=True).promotion
    assert made is not None
    write_prompt(bench.prompts, "c", skill=0.75)
    bench.answer("c")
    promote(bench.settings, bench.engine, bench.store, "c", by="ann", accepts_no_evidence=True)
    frame.write_text(frame.read_text().replace("system: s", "system: other"))
    back = roll_back(bench.settings, bench.engine, by="ann")
    assert (back.prompt_version, back.prompt_digest) == ("b", made.prompt_digest)


def test_a_challenger_that_misses_every_high_scene_of_few_camera_days_is_not_promoted_for_its_precision(
    bench: Bench,
) -> None:
    judged(bench, skill=1.0)
    newest = bench.freeze()
    high = [item for item in set_cases(bench.engine, newest.version) if item.truth and item.truth.lowest is HIGH]
    kept = sorted({item.case.cluster for item in high})[:5]
    gone = [item.case.case_id for item in high if item.case.cluster not in kept]
    with transaction(bench.engine) as connection:
        connection.execute(text("DELETE FROM evaluation_set_case WHERE case_id = ANY(:gone)"), {"gone": gone})
        connection.execute(
            text("UPDATE evaluation_result SET risk_level = 'none' WHERE case_id = ANY(:missed) AND run LIKE '%:b:%'"),
            {"missed": [item.case.case_id for item in high]},
        )
    [ruling] = nightly_rulings(bench.settings, bench.engine, bench.store)
    assert ruling.compared.differences["recall_high"].challenger == 0.0
    assert ruling.decision.verdict is GateVerdict.NO_EVIDENCE
    assert "recall_high: 5 camera-days hold such cases, 6 are needed" in ruling.statistics
    assert ruling.promotion is None


def test_a_champion_that_its_endpoint_failed_is_to_be_evaluated_again(bench: Bench) -> None:
    judged(bench, skill=1.0)
    with transaction(bench.engine) as connection:
        connection.execute(
            text(
                "UPDATE evaluation_result SET state = 'failed', risk_level = NULL, failure_code = 'unavailable' "
                "WHERE run LIKE '%:a:%' AND case_id < (SELECT percentile_disc(0.3) WITHIN GROUP (ORDER BY case_id) "
                "FROM evaluation_result)"
            )
        )
    [ruling] = nightly_rulings(bench.settings, bench.engine, bench.store)
    assert ruling.decision.verdict is GateVerdict.NO_EVIDENCE
    assert "the champion answered only 7" in ruling.statistics
    assert "evaluate it again" in ruling.statistics
    assert ruling.promotion is None


def test_without_held_out_cases_a_person_may_promote_and_the_night_does_not(bench: Bench) -> None:
    write_prompt(bench.prompts, "b", skill=1.0)
    evaluation = bench.settings.evaluation.model_copy(update={"challengers": ("b",), "held_out_share": 1e-9})
    bench.settings = bench.settings.model_copy(update={"evaluation": evaluation})
    bench.add(40)
    for version in ("a", "b"):
        bench.answer(version)
    [ruling] = nightly_rulings(bench.settings, bench.engine, bench.store)
    assert (ruling.decision.verdict, ruling.promotion) == (GateVerdict.NO_EVIDENCE, None)
    assert "0 held-out cases" in ruling.statistics
    made = promote(bench.settings, bench.engine, bench.store, "b", by="ann", accepts_no_evidence=True)
    assert made.promotion is not None


def change(kind: str, version: str, previous: str) -> Promotion:
    return Promotion(1, DAY, kind, version, "", previous, "ann", "", None)


@pytest.mark.parametrize(
    ("history", "target"),
    [
        ([], None),
        ([("promoted", "b", "a")], "a"),
        ([("promoted", "b", "a"), ("promoted", "c", "b")], "b"),
        ([("promoted", "b", "a"), ("promoted", "c", "b"), ("rolled_back", "b", "c")], "a"),
        ([("promoted", "b", "a"), ("rolled_back", "a", "b")], None),
        ([("promoted", "b", "a"), ("rolled_back", "a", "b"), ("promoted", "c", "a")], "a"),
    ],
)
def test_each_roll_back_goes_one_further_back(history: list[tuple[str, str, str]], target: str | None) -> None:
    assert rollback_target([change(*item) for item in history]) == target
