"""Cron expressions in time zones, also where clocks change."""

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from app.runs import InvalidInput
from app.schedules.times import check_times, description, next_time, next_times

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _times(cron: str, zone: str, after: str, count: int) -> list[str]:
    return [f"{time:%m-%d %H:%M}" for time in next_times(cron, zone, _utc(after), count)]


def test_times_are_those_of_the_zone_in_utc() -> None:
    assert _times("0 9 * * MON-FRI", "Europe/Berlin", "2026-01-16T08:00:00", 2) == [
        "01-19 08:00",
        "01-20 08:00",
    ]
    assert _times("*/20 * * * *", "UTC", "2026-01-16T08:00:00", 3) == [
        "01-16 08:20",
        "01-16 08:40",
        "01-16 09:00",
    ]


def test_a_time_is_after_the_given_one_however_near() -> None:
    at_nine = _utc("2026-01-16T09:00:00")
    assert next_time("0 9 * * *", "UTC", at_nine) == _utc("2026-01-17T09:00:00")
    before = at_nine.replace(hour=8, minute=59, second=59, microsecond=999_999)
    assert next_time("0 9 * * *", "UTC", before) == at_nine


def test_a_time_in_a_missing_hour_is_due_when_the_hour_is_over() -> None:
    """In Berlin, 02:00 to 03:00 of 29 March 2026 does not exist: 03:00 is 01:00 UTC."""
    assert _times("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00", 3) == [
        "03-28 01:30",
        "03-29 01:00",
        "03-30 00:30",
    ]


def test_a_wildcard_follows_the_hours_that_pass_on_the_day_of_a_missing_hour() -> None:
    assert _times("0 * * * *", "Europe/Berlin", "2026-03-29T00:30:00", 2) == [
        "03-29 01:00",
        "03-29 02:00",
    ]


def test_a_time_in_a_doubled_hour_is_due_once() -> None:
    """In Berlin, 02:00 to 03:00 of 25 October 2026 exists twice: from 00:00 to 02:00 UTC."""
    assert _times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00", 2) == [
        "10-25 00:30",
        "10-26 01:30",
    ]
    # Within the second 02:00 to 03:00, the first 02:30 has passed.
    assert _times("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00", 1) == ["10-26 01:30"]


def test_a_wildcard_is_due_in_both_hours_of_a_doubled_one() -> None:
    assert _times("30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00", 3) == [
        "10-25 00:30",
        "10-25 01:30",
        "10-25 02:30",
    ]


def test_times_grow_over_a_whole_year_of_clock_changes() -> None:
    for cron in ("*/30 1-3 * * *", "15,45 0-4 * * *", "30 2 * * *", "0 */2 * * *"):
        found = next_times(cron, "America/New_York", NOW, 3000)
        assert all(a < b for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("cron", "zone", "error"),
    [
        ("* * * *", "UTC", "cron: must have five fields"),
        ("* * * * * *", "UTC", "cron: must have five fields"),
        ("60 * * * *", "UTC", "cron: bad minute; an example is"),
        ("0 9 * * FUNDAY", "UTC", "cron: bad day-of-week"),
        ("0 0 31 2 *", "UTC", "cron: "),
        ("0 9 * * *" + " " * 200, "UTC", "cron: 209 characters"),
        ("0 9 * * *", "Europe/Atlantis", "time_zone: no name of a time zone"),
        ("0 9 * * *", "../../etc/passwd", "time_zone: no name of a time zone"),
        ("0 9 * * *", "", "time_zone: no name of a time zone"),
        ("0 9 * * *", "x" * 65, "time_zone: 65 characters"),
    ],
)
def test_wrong_times_are_refused_by_name(cron: str, zone: str, error: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_times(cron, zone, NOW)
    assert str(refused.value).startswith(error)


def test_an_expression_has_a_description() -> None:
    assert description("0 9 * * MON-FRI") == "At 09:00 on Monday through Friday"
