"""Dates in English text: absolute ones, and relative ones resolved against a day.

    absolute   5 May 2023 | 5th of May, 2023 | May 5, 2023 | 2023-05-05 | 2023/05/05 | May 2023
    relative   yesterday | last Friday | the Friday before last | on Friday | 3 days ago |
               two weeks ago | a fortnight ago | last week, month, year | 5 May (without a year)

A mention becomes an ISO date, or its beginning (`2023-05`, `2023`) where the text says no more.
`last Friday` and `on Friday` are the latest Friday before the day of telling; `last week` is seven
days before it.

What it leaves out: the time of day, ranges, and days to come.

How to use: `find_dates("I was there last Friday.", parse_day("2023-05-08"))`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass

MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september"),
    *("october", "november", "december"),
)
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
NUMBERS = {
    word: number
    for number, words in enumerate(
        (
            *("zero", "a an one", "two couple", "three", "four", "five", "six", "seven", "eight"),
            *("nine", "ten", "eleven", "twelve", "thirteen", "fourteen"),
        )
    )
    for word in words.split()
}
DAYS_BACK = {
    **{"today": 0, "this morning": 0, "this afternoon": 0, "this evening": 0, "tonight": 0},
    **{"yesterday": 1, "last night": 1, "the day before yesterday": 2, "last week": 7},
    **{"a fortnight ago": 14},
}

MONTH = "(?P<month>" + "|".join(f"{name[:3].title()}(?:{name[3:]})?" for name in MONTHS) + r")\b\.?"
DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
YEAR = r"(?P<year>\d{4})"
WEEKDAY = "(?P<weekday>" + "|".join(WEEKDAYS) + ")"
COUNT = r"(?P<count>\d{1,3}|" + "|".join(NUMBERS) + ")"

Match = re.Match[str]


@dataclass(frozen=True)
class DateMention:
    """A date in a text, at [start, end); `date` is empty where it cannot be told."""

    start: int
    end: int
    date: str
    relative: bool


def parse_day(text: str) -> datetime.date | None:
    """Return the first full absolute date of a text, such as a session's, or None."""
    for mention in find_dates(text):
        if len(mention.date) == len("2023-05-05"):
            return datetime.date.fromisoformat(mention.date)
    return None


def write_day(text: str) -> str:
    """Return the first full date of a text in ISO form, empty where it has none."""
    day = parse_day(text)
    return "" if day is None else day.isoformat()


def find_dates(text: str, told_on: datetime.date | None = None) -> list[DateMention]:
    """Return the dates of a text in its order; relative ones need the day of telling."""
    found: list[DateMention] = []
    taken: list[tuple[int, int]] = []
    for pattern, relative, resolve in PATTERNS:
        for match in pattern.finditer(text):
            start, end = match.span()
            if any(start < other_end and other_start < end for other_start, other_end in taken):
                continue
            taken.append((start, end))  # also where there is no such day, as 31 February 2023
            if relative and told_on is None:
                date: str | None = ""
            else:
                date = resolve(match, told_on or datetime.date.min)
            if date is not None:
                found.append(DateMention(start, end, date, relative))
    return sorted(found, key=lambda mention: mention.start)


def remove_dates(text: str) -> str:
    """Return a text without the words of its dates."""
    for mention in reversed(find_dates(text)):
        text = f"{text[: mention.start].rstrip(' ')} {text[mention.end :].lstrip(' ')}"
    return re.sub(r"\s+(?=[.,;:!?])", "", text).strip(" ,")


def read_month(match: Match) -> int:
    """Return the number of a month from its name."""
    start = match["month"][:3].lower()
    return next(index for index, name in enumerate(MONTHS, start=1) if name.startswith(start))


def make_date(year: int, month: int, day: int) -> datetime.date | None:
    """Return a date, or None where there is no such day."""
    try:
        return datetime.date(year, month, day)
    except ValueError:
        return None


def resolve_numbers(match: Match, _: datetime.date) -> str | None:
    """Resolve 2023-05-05."""
    date = make_date(int(match["year"]), int(match["number"]), int(match["day"]))
    return None if date is None else date.isoformat()


def resolve_day(match: Match, _: datetime.date) -> str | None:
    """Resolve 5 May 2023."""
    date = make_date(int(match["year"]), read_month(match), int(match["day"]))
    return None if date is None else date.isoformat()


def resolve_month(match: Match, _: datetime.date) -> str:
    """Resolve May 2023."""
    return f"{match['year']}-{read_month(match):02d}"


def resolve_day_of_some_year(match: Match, told_on: datetime.date) -> str | None:
    """Resolve 5 May: the latest one that was not after the day of telling."""
    for year in range(told_on.year, max(told_on.year - 5, 0), -1):  # 29 February may be far
        date = make_date(year, read_month(match), int(match["day"]))
        if date is not None and date <= told_on:
            return date.isoformat()
    return None


def resolve_known_phrase(match: Match, told_on: datetime.date) -> str | None:
    """Resolve yesterday and the like."""
    return go_back(told_on, DAYS_BACK[" ".join(match["phrase"].lower().split())])


def resolve_weekday(match: Match, told_on: datetime.date) -> str | None:
    """Resolve last Friday: the latest one before the day of telling."""
    back = (told_on.weekday() - WEEKDAYS.index(match["weekday"].lower()) - 1) % 7 + 1
    return go_back(told_on, back)


def resolve_weekday_before_last(match: Match, told_on: datetime.date) -> str | None:
    """Resolve the Friday before last: a week before last Friday."""
    back = (told_on.weekday() - WEEKDAYS.index(match["weekday"].lower()) - 1) % 7 + 1
    return go_back(told_on, back + 7)


def resolve_count(match: Match, told_on: datetime.date) -> str | None:
    """Resolve three days ago; months and years give no day."""
    word, unit = match["count"].lower(), match["unit"].lower()
    count = int(word) if word.isdigit() else NUMBERS[word]
    if unit == "day":
        return go_back(told_on, count)
    if unit == "week":
        return go_back(told_on, 7 * count)
    return go_back_months(told_on, count if unit == "month" else 12 * count, unit)


def resolve_last(match: Match, told_on: datetime.date) -> str | None:
    """Resolve last month and last year."""
    unit = match["unit"].lower()
    return go_back_months(told_on, 1 if unit == "month" else 12, unit)


def go_back(told_on: datetime.date, days: int) -> str | None:
    """Return the day that many days earlier, None before the first year."""
    ordinal = told_on.toordinal() - days
    return datetime.date.fromordinal(ordinal).isoformat() if ordinal >= 1 else None


def go_back_months(told_on: datetime.date, months: int, unit: str) -> str | None:
    """Return the month (or the year, where `unit` is year) that many months earlier."""
    year, month = divmod(12 * told_on.year + told_on.month - 1 - months, 12)
    if year < 1:
        return None
    return f"{year:04d}" if unit == "year" else f"{year:04d}-{month + 1:02d}"


def ignore_case(pattern: str) -> re.Pattern[str]:
    """Return a pattern for whole words in any case."""
    return re.compile(rf"\b{pattern}\b", re.IGNORECASE)


# Longer forms come first: what they take is taken. Months keep their capital: one may say `may`.
PATTERNS: tuple[tuple[re.Pattern[str], bool, Callable[[Match, datetime.date], str | None]], ...] = (
    (
        re.compile(rf"\b(?:[Oo]n )?{YEAR}([-/])(?P<number>\d{{2}})\2(?P<day>\d{{2}})(?!\d)"),
        False,
        resolve_numbers,
    ),
    (
        re.compile(rf"\b(?:[Oo]n )?(?:the )?{DAY} (?:of )?{MONTH},? {YEAR}\b"),
        False,
        resolve_day,
    ),
    (re.compile(rf"\b(?:[Oo]n )?{MONTH} {DAY},? {YEAR}\b"), False, resolve_day),
    (re.compile(rf"\b(?:[Ii]n )?{MONTH},? {YEAR}\b"), False, resolve_month),
    (
        re.compile(rf"\b(?:[Oo]n )?(?:the )?{DAY} (?:of )?{MONTH}(?=\W|$)"),
        True,
        resolve_day_of_some_year,
    ),
    (re.compile(rf"\b(?:[Oo]n )?{MONTH} {DAY}\b"), True, resolve_day_of_some_year),
    (
        ignore_case(r"(?P<phrase>the day before yesterday)"),
        True,
        resolve_known_phrase,
    ),
    (
        ignore_case("(?P<phrase>" + "|".join(DAYS_BACK).replace(" ", r"\s+") + ")"),
        True,
        resolve_known_phrase,
    ),
    (ignore_case(rf"(?:on )?the {WEEKDAY} before last"), True, resolve_weekday_before_last),
    (ignore_case(rf"(?:last|this past|on) {WEEKDAY}"), True, resolve_weekday),
    (
        ignore_case(rf"(?:a )?{COUNT} (?:of )?(?P<unit>day|week|month|year)s? ago"),
        True,
        resolve_count,
    ),
    (ignore_case(r"last (?P<unit>month|year)"), True, resolve_last),
)
