"""The report of online learners on a stream: report.html, regret.png and regret.json.

What it is: one page that needs nothing else and runs no script.

What it leaves out: measures (`bandit_results`), words (`bandit_comparison`), pictures
(`bandit_figures`). Needs the extra `train`.

How to use: `write_bandit_report(folder, result, context)`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rlroute.bandits.comparators import BEST_AVAILABLE, BEST_FIXED
from rlroute.evaluation.bandit_comparison import describe_bandits, format_delay, format_spread
from rlroute.evaluation.bandit_figures import draw_regret, draw_shares
from rlroute.evaluation.bandit_results import BanditResult
from rlroute.evaluation.report import embed_png, make_page_environment
from rlroute.files import write_atomic

TEMPLATE = "bandit_report.html"
RESULT_FILE, PICTURE_FILE, PAGE_FILE = "regret.json", "regret.png", "report.html"


@dataclass(frozen=True)
class BanditContext:
    """What the page tells of a run besides its measures."""

    run_name: str
    command: str
    recipe_yaml: str
    contexts: str


def write_bandit_report(folder: Path, result: BanditResult, context: BanditContext) -> None:
    """Write regret.json, regret.png and report.html, each atomically.

    Raises:
        RLRouteError: matplotlib or jinja2 is not installed.
    """
    regret_png = draw_regret(result)
    page = render_bandit_report(result, context, regret_png)
    plain = json.dumps(result.to_dict(), indent=1, allow_nan=False)
    write_atomic(folder / RESULT_FILE, plain + "\n")
    write_atomic(folder / PICTURE_FILE, regret_png)
    write_atomic(folder / PAGE_FILE, page)


def render_bandit_report(result: BanditResult, context: BanditContext, regret_png: bytes) -> str:
    """Return the page; everything that comes from tables and recipes is escaped."""
    environment = make_page_environment()
    environment.filters |= {"spread": format_spread, "delay": format_delay}
    shares_png = draw_shares(result)
    page: str = environment.get_template(TEMPLATE).render(
        result=result,
        context=context,
        rows=[*result.learners, *result.comparators],
        sentences=describe_bandits(result),
        best_available=BEST_AVAILABLE,
        best_fixed=BEST_FIXED,
        pictures={
            "regret": embed_png(regret_png),
            "shares": embed_png(shares_png) if shares_png else None,
        },
    )
    return page
