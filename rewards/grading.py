r"""Grades of answers against references: exact match, token F1, numbers, multiple choice.

Every grader maps (answer, references) to [0, 1]: a reference itself scores 1, an empty answer 0,
the best reference counts. A failed call has no answer and is not graded (`rlroute.collection`).

What is done to texts, as for SQuAD (Rajpurkar et al., 2016): lower case, no punctuation, no
articles (a, an, the), single blanks. Where nothing is left of a reference ("The", "?!"), its plain
lower-case text is compared instead.

- exact: the normalised texts are equal.
- f1: harmonic mean of precision and recall over normalised tokens, counted with repetition.
- numeric: the last number of the answer equals the reference's; whole numbers exactly, others to
  one part in a million. Commas between thousands, a leading sign, exponents and a/b are read; a
  percent sign is not (50% is 50).
- choice: the letter chosen equals the reference's. Read are, in this order: a lone letter, the last
  "answer is B" or "\boxed{B}", a letter with a bracket, stop or colon at the beginning.

What it leaves out: judges, and scorers of other libraries (`rlroute.collection.grading`).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

Grade = Callable[[str, Sequence[str]], float]

TOLERANCE = Decimal("1e-6")
PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
NUMBER = rf"(?:(?<![\w.)])[-+\u2212])?(?:{DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\d))?"
NUMBERS = re.compile(rf"({NUMBER})(?:\s*/\s*({DIGITS}))?")
LONE_LETTER = re.compile(r"\W*([A-Za-z])\W*")
NAMED_LETTER = re.compile(
    r"(?:\banswer(?:\s+is)?\s*:?\s*|\\boxed\{\s*(?:\\text\{)?)[\s*(\[\"']*([A-Z])\b", re.IGNORECASE
)
FIRST_LETTER = re.compile(r"[\s*]*[(\[]?([A-Z])[*]*[)\].:]")


def normalise_answer(text: str) -> str:
    """Return a text in lower case, without punctuation and articles, with single blanks."""
    words = text.lower().translate(PUNCTUATION).split()
    kept = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(kept) if kept else " ".join(text.lower().split())


def grade_exact(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the normalised answer equals a normalised reference, else 0."""
    normalised = normalise_answer(answer)
    return float(bool(normalised) and normalised in map(normalise_answer, references))


def grade_f1(answer: str, references: Sequence[str]) -> float:
    """Return the largest token F1 of the answer with a reference."""
    found = Counter(normalise_answer(answer).split())
    best = 0.0
    for reference in references:
        wanted = Counter(normalise_answer(reference).split())
        shared = (found & wanted).total()
        if shared:
            best = max(best, 2 * shared / (found.total() + wanted.total()))
    return best


def read_number(text: str) -> Decimal | None:
    """Return the last number in a text, None where there is none."""
    matches = list(NUMBERS.finditer(text))
    if not matches:
        return None
    last, divisor = matches[-1].groups()
    number = _to_decimal(last)
    if divisor is None:
        return number
    below = _to_decimal(divisor)
    return None if below == 0 else number / below


def _to_decimal(text: str) -> Decimal:
    """Return the number that a match of NUMBER stands for."""
    return Decimal(text.replace(",", "").replace("\u2212", "-"))


def grade_numeric(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the last number of the answer is that of a reference, else 0."""
    found = read_number(answer)
    if found is None:
        return 0.0
    wanted = [number for number in map(read_number, references) if number is not None]
    return float(any(_is_equal(found, number) for number in wanted))


def _is_equal(found: Decimal, wanted: Decimal) -> bool:
    """Say whether two numbers are the same; whole ones exactly."""
    if found == wanted:
        return True
    if found == found.to_integral_value() and wanted == wanted.to_integral_value():
        return False
    return abs(found - wanted) <= TOLERANCE * abs(wanted)


def read_choice(text: str) -> str | None:
    """Return the letter that an answer chooses, as a capital; None where it chooses none."""
    lone = LONE_LETTER.fullmatch(text)
    if lone:
        return lone[1].upper()
    named = NAMED_LETTER.findall(text)
    if named:
        return str(named[-1]).upper()
    first = FIRST_LETTER.match(text)
    return first[1] if first else None


def grade_choice(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the answer chooses the letter of a reference, else 0."""
    chosen = read_choice(answer)
    return float(chosen is not None and chosen in map(read_choice, references))


GRADES: Mapping[str, Grade] = {
    "exact": grade_exact,
    "f1": grade_f1,
    "numeric": grade_numeric,
    "choice": grade_choice,
}
