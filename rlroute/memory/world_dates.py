"""How people of the generated world tell days and numbers: "5 May 2023", "last Friday", "three".

What it leaves out: reading them (`rlroute.memory.rules_dates` does so for any text).

How to use: `list_relative_phrases(happened_on, said_on)`.
"""

from __future__ import annotations

import datetime

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen"),
)


def spell_date(date: datetime.date) -> str:
    """Return a date as people write it, such as 5 May 2023."""
    return f"{date.day} {date:%B} {date.year}"


def list_relative_phrases(happened_on: datetime.date, said_on: datetime.date) -> tuple[str, ...]:
    """Return the ways of saying a day of the last two weeks from the day of telling, or of 21 ago.

    "last Friday" is the latest Friday before the day of telling, "the Friday before last" the one a
    week earlier.
    """
    days = (said_on - happened_on).days
    weekday = f"{happened_on:%A}"
    phrases = {
        1: ("yesterday",),
        2: ("two days ago", "the day before yesterday"),
        7: ("a week ago", "one week ago"),
        14: ("two weeks ago", "a fortnight ago"),
        21: ("three weeks ago",),
    }
    if days in phrases:
        return phrases[days]
    if days < 7:
        return (f"{NUMBERS[days]} days ago", f"last {weekday}")
    return (f"{NUMBERS[days]} days ago", f"the {weekday} before last")
