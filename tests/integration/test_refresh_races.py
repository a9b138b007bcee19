"""A sample of the races of `python -m tests.chaos.refresh`, small enough for each run of the tests."""

from tests.chaos.refresh import judge, report, run_world

RACES = 200
SEED = 139
"""Of one in which answers get lost and a worker is killed in one round of the four: both cost the wait for a lease."""


async def test_no_refresh_token_is_used_twice_and_none_is_wiped() -> None:
    """Four processes refresh the same 50 logins at once, four times; answers get lost and a worker is killed."""
    totals = await run_world(f"{SEED}/0", races=RACES, processes=4, logins=50, lease=6.0)
    print(report(totals, SEED))
    assert totals.problems == []
    assert (totals.races, totals.uncounted_double_uses, totals.wiped) == (RACES, 0, 0)
    assert totals.pairs + totals.dead == RACES
    assert totals.lost
    assert totals.not_processed
    assert totals.kills
    assert judge(totals) == 0
