"""Runs of one table's query sessions, side by side with all baselines, at every budget.

    PYTHONPATH=. python tests/benchmarks/query_session_numbers.py RUN [RUN ...]

The runs are the same recipe with several seeds. For each cap: quality (mean score per query), USD
per 1,000 sessions and bankruptcies of the policy (mean of the runs) and of each baseline (of a knob
the setting that val chose, "best" of the executors alone by val), and the policy's lead with a 95%
interval, paired over test sessions. `rlroute evaluate` says more of a single run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from rlroute.evaluation.intervals import draw_resamples, make_estimate
from rlroute.evaluation.step_measures import StepPlayed
from rlroute.step_runs import list_policies, open_arena, read_step_run
from rlroute.trainers.step_arena import Arena, Contender
from rlroute.trainers.step_contenders import list_baselines

LEFT_OUT = ("LinUCB", "Bernoulli", "first-large")  # worse than all others here, and slow


def play_all(arena: Arena, contenders: list[Contender]) -> dict[str, list[StepPlayed]]:
    """Play contenders on test; of each family what val chose at each cap."""
    test = {one.name: arena.measure(one, "test") for one in contenders}
    val = {one.name: arena.measure(one, "val") for one in contenders if one.family}
    val |= {one.name: arena.measure(one, "val") for one in contenders if one.kind == "static"}
    families = {one.family for one in contenders if one.family} | {"best alone"}
    alone = [f"always {name}" for name in arena.executor_ids]
    found = {alone[0]: test[alone[0]]}
    found |= {one.name: test[one.name] for one in contenders if not one.family}
    found = {name: points for name, points in found.items() if name not in alone[1:]}
    for family in families:
        names = [one.name for one in contenders if one.family == family]
        if family == "best alone":
            names = alone
        found[family] = [
            test[max(names, key=lambda name: float(val[name][place].success_Q.mean()))][place]
            for place in range(len(arena.settings))
        ]
    return found


def print_table(arena: Arena, policy: list[list[StepPlayed]], rest: dict) -> None:
    """Print a block for each cap."""
    tasks = arena.tasks["test"]
    weight_SQ = draw_resamples(tasks, 2000, 0)
    for place, setting in enumerate(arena.settings):
        own = [run[place] for run in policy]
        own_Q = np.mean([one.success_Q for one in own], axis=0)
        seeds = ", ".join(f"{one.success_Q.mean():.3f}" for one in own)
        print(f"\ncap {setting.cap:g} USD, {tasks} sessions")
        rows = [("policy", own_Q, own, f"seeds {seeds}")]
        for name, points in rest.items():
            lead_Q = own_Q - points[place].success_Q
            lead = make_estimate(float(lead_Q.mean()), weight_SQ @ lead_Q)
            text = f"lead {lead.value:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}]"
            rows.append((name, points[place].success_Q, [points[place]], text))
        for name, score_Q, played, text in rows:
            usd = 1000 * np.mean([one.cost_usd_Q.mean() for one in played])
            broke = 100 * np.mean([one.exhausted_Q.mean() for one in played])
            passed = sum(one.violations for one in played)
            assert passed == 0
            print(f"  {name:32s} {score_Q.mean():.3f}  {usd:8.4f} USD  broke {broke:5.1f}%  {text}")


def main() -> None:
    """Compare the runs that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a finished run")
    runs = [read_step_run(folder) for folder in parser.parse_args().runs]
    with open_arena(runs[0], runs[1:]) as arena:
        policy = [arena.measure(list_policies(run, [], arena.stage)[0], "test") for run in runs]
        baselines, _ = list_baselines(arena)
        kept = [
            one for one in baselines if not any(name in (one.name, one.family) for name in LEFT_OUT)
        ]
        print_table(arena, policy, play_all(arena, kept))


if __name__ == "__main__":
    main()
