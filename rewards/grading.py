r"""Grades of answers against references: exact match, token F1, numbers, multiple choice.

Every grader maps (answer, references) to [0, 1]: a reference itself scores 1, an empty answer 0,
the best reference counts. A failed call has no answer and is not graded (`rlroute.collection`).

What is done to texts: lower case, no ASCII punctuation, no articles (a, an, the), single blanks.
Two normalisations differ in what becomes of punctuation: for exact and f1 a mark becomes a blank
("twenty-one" is two words), for squad_exact and squad_f1 it vanishes, as in the script of SQuAD
(Rajpurkar et al., 2016; "U.S.A." is "usa"). Where nothing is left of a text ("The", "?!"), its
plain lower-case form is compared instead.

- exact, squad_exact: the normalised texts are equal.
- f1, squad_f1: harmonic mean of precision and recall over normalised tokens, counted with
  repetition. For squad_f1, as for HotpotQA (Yang et al., 2018), a side that is yes, no or noanswer
  must equal the other, or the grade is 0.
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
NO_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation))
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
NUMBER = rf"(?:(?<![\w.)])[-+\u2212])?(?:{DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\d))?"
NUMBERS = re.compile(rf"({NUMBER})(?:\s*/\s*({DIGITS}))?")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
CLOSED_ANSWERS = ("yes", "no", "noanswer")
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


def normalise_squad_answer(text: str) -> str:
    """Return a text as SQuAD's script does: punctuation vanishes, articles become a blank."""
    lower = text.lower()
    words = ARTICLES.sub(" ", lower.translate(NO_PUNCTUATION)).split()
    return " ".join(words or lower.split())


def grade_exact(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the normalised answer equals a normalised reference, else 0."""
    normalised = normalise_answer(answer)
    return float(bool(normalised) and normalised in map(normalise_answer, references))


def grade_squad_exact(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the answer equals a reference, both as SQuAD's script normalises, else 0."""
    normalised = normalise_squad_answer(answer)
    return float(bool(normalised) and normalised in map(normalise_squad_answer, references))


def grade_f1(answer: str, references: Sequence[str]) -> float:
    """Return the largest token F1 of the answer with a reference."""
    found = normalise_answer(answer)
    return max((_compute_f1(found, normalise_answer(text)) for text in references), default=0.0)


def grade_squad_f1(answer: str, references: Sequence[str]) -> float:
    """Return the largest token F1 with a reference, both as SQuAD's script normalises."""
    found, best = normalise_squad_answer(answer), 0.0
    for wanted in map(normalise_squad_answer, references):
        if found == wanted or not {found, wanted} & set(CLOSED_ANSWERS):
            best = max(best, _compute_f1(found, wanted))
    return best


def _compute_f1(found: str, wanted: str) -> float:
    """Return the F1 of the words of two normalised texts."""
    found_words, wanted_words = Counter(found.split()), Counter(wanted.split())
    shared = (found_words & wanted_words).total()
    return 2 * shared / (found_words.total() + wanted_words.total()) if shared else 0.0


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
    "squad_exact": grade_squad_exact,
    "squad_f1": grade_squad_f1,
    "numeric": grade_numeric,
    "choice": grade_choice,
}
