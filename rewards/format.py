"""The format term: 0 for an episode in good form, down to -1 for a broken one.

It is judged on what the policy wrote and on nothing else: each chunk comes with the faults that the
parser found when it decided what the chunk does (`rlroute.parsing`), so a reply of the pool cannot
break a format, and nothing can be executed that is then called unreadable. The worst fault counts.

| class    | faults                                                                              |
| -------- | ----------------------------------------------------------------------------------- |
| `severe` | no_tag, nested, unbalanced, forged_information, no_calls_left; an episode that ends |
|          | without an answer                                                                   |
| `medium` | no_colon, unknown_name, empty_query, placeholder                                    |
| `small`  | empty_answer, no_think, blank_think, text_outside                                   |
| `none`   | unaffordable: the ledger refuses the call, which is no fault of form                |

Every class costs 1 by default, as in Router-R1, whose three penalties were never told apart;
smaller numbers grade them, and `classes` moves single faults:

    format: {medium: 0.5, small: 0.2, classes: {unknown_name: none}}

What it leaves out: the original's check of the whole text (`rlroute.router_r1.score_format`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rlroute.config import StrictModel
from rlroute.parsing import Fault, ParsedChunk

Severity = Literal["severe", "medium", "small", "none"]

SEVERITIES: Mapping[Fault, Severity] = {
    Fault.NO_TAG: "severe",
    Fault.NESTED: "severe",
    Fault.UNBALANCED: "severe",
    Fault.FORGED_INFORMATION: "severe",
    Fault.NO_CALLS_LEFT: "severe",
    Fault.NO_COLON: "medium",
    Fault.UNKNOWN_NAME: "medium",
    Fault.EMPTY_QUERY: "medium",
    Fault.PLACEHOLDER: "medium",
    Fault.EMPTY_ANSWER: "small",
    Fault.NO_THINK: "small",
    Fault.BLANK_THINK: "small",
    Fault.TEXT_OUTSIDE: "small",
    Fault.UNAFFORDABLE: "none",
}


class FormatRule(StrictModel):
    """What the classes of faults cost, in [0, 1], and which class a fault is moved to.

    Keys of `classes` are the faults' names in lower case.
    """

    severe: float = Field(default=1.0, ge=0, le=1)
    medium: float = Field(default=1.0, ge=0, le=1)
    small: float = Field(default=1.0, ge=0, le=1)
    unanswered: Severity = "severe"
    classes: dict[str, Severity] = Field(default_factory=dict)

    @field_validator("classes")
    @classmethod
    def _check_faults(cls, classes: dict[str, Severity]) -> dict[str, Severity]:
        known = [fault.name.lower() for fault in Fault]
        unknown = [name for name in classes if name not in known]
        if unknown:
            raise ValueError(f"no such fault '{unknown[0]}' (known: {', '.join(known)})")
        return classes

    @model_validator(mode="after")
    def _check_order(self) -> FormatRule:
        if not self.severe >= self.medium >= self.small:
            raise ValueError(
                f"severe ({self.severe}), medium ({self.medium}) and small ({self.small}) must "
                "not rise in this order"
            )
        return self

    def get_cost(self, fault: Fault) -> float:
        """Return what a fault costs, in [0, 1]."""
        return self._price(self.classes.get(fault.name.lower(), SEVERITIES[fault]))

    def get_unanswered_cost(self) -> float:
        """Return what an episode without an answer costs, in [0, 1]."""
        return self._price(self.unanswered)

    def _price(self, severity: Severity) -> float:
        """Return what a class of faults costs."""
        costs = {"severe": self.severe, "medium": self.medium, "small": self.small, "none": 0.0}
        return costs[severity]


def score_format(chunks: Sequence[ParsedChunk], answered: bool, rule: FormatRule) -> float:
    """Return the format term of an episode, in [-1, 0]: minus what its worst fault costs.

    `chunks` are all chunks that the policy wrote, `answered` says whether the last one answered.
    """
    costs = [rule.get_cost(fault) for chunk in chunks for fault in chunk.faults]
    if not answered:
        costs.append(rule.get_unanswered_cost())
    return 0.0 - max(costs, default=0.0)
