"""Program tools as candidates: small programs that read the question and solve some kinds of it.

What it is: three tools, each a list of programs tried in order. A program parses the text of a
question and returns the answer, or None where the text is not of its kind; a tool none of whose
programs understands the question replies `CANNOT`, which is an answer (a wrong one) and is charged
like any other. Their honest limits:

- calculator: exact + - * / with brackets on whole and decimal numbers, GCD, LCM, fractions to
  lowest terms, one linear equation in one letter; no words, no lists, no powers;
- word_tool: sorts, reverses and spells words backward, counts letters, compares letters of two
  strings; no arithmetic, no meaning;
- date_tool: leap years, weekdays, counts of days, durations between two times or dates; reads
  whole dates only (day, month and year), knows no time zones and no recurring events.

Nothing in a question is ever executed: expressions go through `ast` with four operators allowed.

What it leaves out: models (`rlroute.pool.local`).

How to use: `answer_with_tool("calculator", "State the final answer: 4 - 1 - 7 =")` gives "-4".
"""

from __future__ import annotations

import ast
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from fractions import Fraction

from rlroute.types import Call, Candidate, FailureKind, Reply, RLRouteError, Usage

Program = Callable[[str], str | None]
Line = tuple[Fraction, Fraction]  # (slope, constant) of a linear expression

logger = logging.getLogger(__name__)

CANNOT = "I cannot answer this question."
MAX_EXPRESSION_CHARACTERS = 200  # longer ones are not read: the parser's depth is bounded


@dataclass(frozen=True)
class ToolCandidate:
    """One tool as a candidate: it uses no tokens and charges by the call.

    Raises:
        RLRouteError: no tool has this name.
    """

    candidate: Candidate
    tool: str

    def __post_init__(self) -> None:
        if self.tool not in TOOLS:
            raise RLRouteError(f"no tool '{self.tool}'; known: {', '.join(sorted(TOOLS))}")

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Answer the calls in their order; a program that breaks down makes a typed failure.

        A reply of `CANNOT` is scored 0 here: some scorers find a likeness in any text.
        """
        replies = []
        for call in calls:
            began = time.perf_counter()
            try:
                text = answer_with_tool(self.tool, call.text)
            except (ArithmeticError, ValueError, RecursionError) as error:
                logger.warning("%s broke down at query %s: %s", self.tool, call.query.id, error)
                replies.append(Reply(call, failure=FailureKind.SERVER))
                continue
            reply = Reply(
                call,
                text=text,
                usage=Usage(prompt_tokens=0, completion_tokens=0),
                cost_usd=self.candidate.prices.compute_cost(0, 0),
                latency_seconds=time.perf_counter() - began,
                score=0.0 if text == CANNOT else None,
            )
            replies.append(reply)
        return replies


def answer_with_tool(tool: str, text: str) -> str:
    """Return the answer of the tool's first program that understands the text, else `CANNOT`."""
    for program in TOOLS[tool]:
        answer = program(text)
        if answer is not None:
            return answer
    return CANNOT


# --- calculator ---------------------------------------------------------------------------------


def find_common_divisor(text: str) -> str | None:
    """Answer "Greatest Common Divisor ... of these numbers: 12, 18"."""
    return _fold_numbers(text, "greatest common divisor", math.gcd)


def find_common_multiple(text: str) -> str | None:
    """Answer "Least Common Multiple ... of these numbers: 4, 6"."""
    return _fold_numbers(text, "least common multiple", math.lcm)


def _fold_numbers(text: str, phrase: str, fold: Callable[..., int]) -> str | None:
    """Apply `fold` to the numbers listed after a colon, if the phrase stands before it."""
    match = re.search(rf"{phrase}\b[^:]*:\s*(\d+(?:\s*,\s*\d+)+)", text, re.IGNORECASE)
    return str(fold(*map(int, match[1].split(",")))) if match else None


def simplify_fraction(text: str) -> str | None:
    """Answer "Simplify the fraction 12/18"."""
    match = re.search(r"simplify the fraction \$?(\d+)\s*/\s*(\d+)", text, re.IGNORECASE)
    if match is None or int(match[2]) == 0:
        return None
    fraction = Fraction(int(match[1]), int(match[2]))
    return f"{fraction.numerator}/{fraction.denominator}"


def solve_equation(text: str) -> str | None:
    """Answer a question that holds one linear equation in one letter, as in "3*x + 2 = 11"."""
    match = re.search(r":\s*([\d\s+\-*/().a-z]+)=([\d\s+\-*/().a-z]+)$", text.strip())
    names = set(re.findall(r"[a-z]+", match[1] + match[2])) if match else set()
    if match is None or len(names) != 1 or len(min(names)) != 1:
        return None
    left, right = read_line(match[1], min(names)), read_line(match[2], min(names))
    if left is None or right is None or left[0] == right[0]:
        return None
    return write_number((right[1] - left[1]) / (left[0] - right[0]))


def calculate(text: str) -> str | None:
    """Answer a question that holds an expression of numbers, the longest one if there are more."""
    found = re.findall(r"[(\-]*\d[\d\s+\-*/().]*", text)
    expressions = [e.strip().rstrip(".") for e in found if re.search(r"\d\)*\s*[+\-*/]", e)]
    line = read_line(max(expressions, key=len), "") if expressions else None
    return write_number(line[1]) if line else None


def read_line(expression: str, name: str) -> Line | None:
    """Read an expression of numbers and one letter as slope and constant.

    Returns:
        None where it is too long, not an expression, not linear, or divides by zero.
    """
    if len(expression) > MAX_EXPRESSION_CHARACTERS or re.search(r"[\d.][A-Za-z_]", expression):
        return None  # 1e9, 0xff and 1_000 are Python's, not arithmetic's
    try:
        # A leading zero is no syntax of Python's: 007 is read as 7.
        plain = re.sub(r"(?<![\d.])0+(?=\d)", "", expression.strip())
        return _read_node(ast.parse(plain, mode="eval").body, name, plain)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _read_node(node: ast.expr, name: str, source: str) -> Line:
    """Read one node of the expression tree; ValueError where it is not linear arithmetic."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(0), Fraction(ast.get_source_segment(source, node) or "")
    if isinstance(node, ast.Name) and node.id == name:
        return Fraction(1), Fraction(0)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        slope, constant = _read_node(node.operand, name, source)
        return (-slope, -constant) if isinstance(node.op, ast.USub) else (slope, constant)
    if not isinstance(node, ast.BinOp):
        raise ValueError("not arithmetic")
    left, right = _read_node(node.left, name, source), _read_node(node.right, name, source)
    match node.op:
        case ast.Add():
            return left[0] + right[0], left[1] + right[1]
        case ast.Sub():
            return left[0] - right[0], left[1] - right[1]
        case ast.Mult() if left[0] == 0 or right[0] == 0:
            return left[0] * right[1] + right[0] * left[1], left[1] * right[1]
        case ast.Div() if right[0] == 0:
            return left[0] / right[1], left[1] / right[1]
    raise ValueError("not linear")


def write_number(value: Fraction) -> str:
    """Write a number exactly where its decimals end, else to ten places."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.10f}".rstrip("0")


# --- words --------------------------------------------------------------------------------------


def sort_words(text: str) -> str | None:
    """Answer "sort these words in ascending order ...: pear, apple"."""
    match = re.search(r"sort these words in (ascending|descending) order[^:]*:\s*(.+)$", text)
    if match is None:
        return None
    return ", ".join(sorted(re.split(r",\s*", match[2].strip()), reverse=match[1] == "descending"))


def reverse_words(text: str) -> str | None:
    """Answer "Reverse this list of words: one, two"."""
    match = re.search(r"reverse this list of words:\s*(.+)$", text, re.IGNORECASE)
    return ", ".join(reversed(re.split(r",\s*", match[1].strip()))) if match else None


def spell_backward(text: str) -> str | None:
    """Answer "Spell this word backward (example: sun -> nus): apple"."""
    match = re.search(r"spell this word backward[^:]*(?::[^:]*\))?:\s*(\w+)$", text, re.IGNORECASE)
    return match[1][::-1] if match else None


def count_letter(text: str) -> str | None:
    """Answer 'How many times does the letter "a" appear in the text: "..."?'."""
    match = re.search(r'the letter "(\w)" appear in the text: "(.*)"', text, re.DOTALL)
    return str(match[2].lower().count(match[1].lower())) if match else None


def check_isomorphic(text: str) -> str | None:
    """Say whether the two strings on the last line are equal up to a renaming of letters."""
    match = re.search(r"isomorphic.*:\s*(\S+) (\S+)$", text.strip(), re.DOTALL)
    if match is None:
        return None
    pairs = set(zip(match[1], match[2], strict=False))
    renamed = len(pairs) == len(set(match[1])) == len(set(match[2]))
    return str(renamed and len(match[1]) == len(match[2]))


def check_ransom_note(text: str) -> str | None:
    """Say whether the letters of the magazine suffice for the ransom note."""
    match = re.search(r"ransom note: (\w+)\s+magazine: (\w+)", text, re.IGNORECASE)
    return str(not Counter(match[1]) - Counter(match[2])) if match else None


# --- dates --------------------------------------------------------------------------------------

MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
DATE_PATTERNS = (
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)",
    r"(?P<month>\d\d)/(?P<day>\d\d)/(?P<year>\d{4})",
    r"(?P<month>[A-Z][a-z]{2,8}) (?P<day>\d{1,2}),? (?P<year>\d{4})",
    r"(?P<day>\d{1,2}) (?P<month>[A-Z][a-z]{2,8}),? (?P<year>\d{4})",
)


def find_dates(text: str) -> list[date]:
    """Return the dates in the text, in order, all written in the first form that occurs in it."""
    for pattern in DATE_PATTERNS:
        found = [_make_date(match) for match in re.finditer(pattern, text)]
        dates = [day for day in found if day is not None]
        if dates:
            return dates
    return []


def _make_date(match: re.Match[str]) -> date | None:
    """Return the date of a match, None where there is no such day or month."""
    name = match["month"]
    months = [i for i, month in enumerate(MONTHS, start=1) if name in (month, month[:3])]
    if not name.isdigit() and not months:
        return None
    try:
        return date(int(match["year"]), months[0] if months else int(name), int(match["day"]))
    except ValueError:
        return None


def check_leap_year(text: str) -> str | None:
    """Answer "Is 1900 a leap year?"."""
    match = re.search(r"\b(\d{1,4})\b(?: is)? a leap year", text)
    if match is None:
        return None
    year = int(match[1])
    return "Yes" if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else "No"


def find_weekday(text: str) -> str | None:
    """Answer which weekday a date is, or a number of days before or after it."""
    dates = find_dates(text)
    if len(dates) != 1 or not re.search(r"\bweekday\b|day of the week", text):
        return None
    offset = re.search(r"(\d+)[- ]days?\b", text)
    days = int(offset[1]) if offset else 0
    if re.search(r"\bago\b|\bbefore\b|[Bb]ackward", text):
        days = -days
    return WEEKDAYS[(dates[0] + timedelta(days=days)).weekday()]


def count_days(text: str) -> str | None:
    """Answer how many business days, or days of one weekday, lie between two dates (inclusive)."""
    dates = sorted(find_dates(text))
    if len(dates) != 2:
        return None
    named = re.search(
        rf"(?:How many |occurrences of |how many times does )({'|'.join(WEEKDAYS)})", text
    )
    if named:
        wanted = {WEEKDAYS.index(named[1])}
    elif re.search(r"business days|weekdays \(excluding", text):
        wanted = set(range(5))
    else:
        return None
    length = (dates[1] - dates[0]).days + 1
    days = (dates[0] + timedelta(days=i) for i in range(length))
    return str(sum(day.weekday() in wanted for day in days))


def measure_duration(text: str) -> str | None:
    """Answer how long it is between two times or two dates, in the format asked for."""
    wanted = re.search(r"in (D days, HH:MM:SS|D days, HH:MM|D days|HH:MM:SS|HH:MM)\.", text)
    if wanted is None or re.search(r"[+-]\d{4}\b(?!-)", re.sub(r"\d{4}-\d\d-\d\d", "", text)):
        return None  # times in different zones are beyond this tool
    dates = find_dates(text)
    times = [
        f"{match[1]}{match[2] or ':00'}" for match in re.finditer(r"\b(\d\d:\d\d)(:\d\d)?\b", text)
    ]
    if wanted[1] == "D days":
        return f"{(dates[1] - dates[0]).days} days" if len(dates) == 2 else None
    days = dates if "D days" in wanted[1] else [date.min] * 2
    if len(days) != 2 or len(times) != 2:
        return None
    start, end = (
        datetime.combine(day, datetime.strptime(moment, "%H:%M:%S").time())
        for day, moment in zip(days, times, strict=True)
    )
    minutes, seconds = divmod(int((end - start).total_seconds()) % 86_400, 60)
    clock = f"{minutes // 60:02d}:{minutes % 60:02d}"
    clock = f"{clock}:{seconds:02d}" if wanted[1].endswith("SS") else clock
    return f"{(end - start).days} days, {clock}" if "D days" in wanted[1] else clock


TOOLS: Mapping[str, tuple[Program, ...]] = {
    "calculator": (
        find_common_divisor,
        find_common_multiple,
        simplify_fraction,
        solve_equation,
        calculate,
    ),
    "word_tool": (
        sort_words,
        reverse_words,
        spell_backward,
        count_letter,
        check_isomorphic,
        check_ransom_note,
    ),
    "date_tool": (check_leap_year, measure_duration, count_days, find_weekday),
}
