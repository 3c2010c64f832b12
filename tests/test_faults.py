"""A short form of the fault campaign: `python tests/fault_campaign.py` is the long one."""

import pytest
from fault_campaign import Campaign, Outcome, summary

SCENES = 4


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("campaign"), SCENES, seed=0)


def test_kills_at_random_moments_change_no_byte(campaign):
    outcome = campaign.kills(0, "local", 2, ["worker", "tree"])
    assert outcome.faults == [] and [kind for kind, _ in outcome.kills] == ["worker", "tree"]
    assert "worker" in summary([outcome]) and "violations: 0 in 1 trials" in summary([outcome])


@pytest.mark.parametrize("trial", ["full_disk", "clocks"])
def test_a_run_goes_on_after(campaign, trial):
    assert getattr(campaign, trial)().faults == []


def test_the_campaign_sees_a_store_that_differs(campaign):
    place, outcome = campaign.place("damaged"), Outcome("damaged")
    campaign.half_made(place)
    campaign.is_whole(place, outcome)
    campaign.count_reads(place, outcome)
    assert len(outcome.faults) == 2 and "files differ" in outcome.faults[0] and "every frame" in outcome.faults[1]
