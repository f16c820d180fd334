"""Tier routers at work: the trainer's decisions, without its libraries; order and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tier_router_example import find_tier_run, make_bundle

from rlroute import TierRouter
from rlroute.memory.live import LiveOutcomes
from rlroute.memory.pipeline import read_chunks, read_notes
from rlroute.policies.decision import Decisions
from rlroute.policies.tier_scorer import TierScorerPolicy
from rlroute.policies.tierwise import TierInputs
from rlroute.runs import export_run
from rlroute.tier_router import TierChoice, TierEpisode
from rlroute.trainers.memory_problem import play_greedily
from rlroute.trainers.memory_run import load_best_scorer
from rlroute.trainers.memory_stage import MemoryStage, open_memory_stage
from rlroute.types import RLRouteError

WEIGHTS = (0.0, 0.4, 1.0)
RETRIEVED = ["Anna said she moved to Rome in May.", "Ben said he moved to Oslo."]
NOTES = {"entity": ["Anna - lives in - Rome"], "temporal": []}


class Recorder:
    """A policy that writes down what another one decides."""

    version = 0

    def __init__(self, policy: TierScorerPolicy) -> None:
        self.policy = policy
        self.decisions: list[Decisions] = []

    def decide(self, inputs: TierInputs, uniform_B: Any) -> Decisions:
        """Decide for B lanes."""
        self.decisions.append(self.policy.decide(inputs, uniform_B))
        return self.decisions[-1]


def play_trained(stage: MemoryStage, live: LiveOutcomes, weight: float) -> list[dict[str, Any]]:
    """Play the test questions; return of each what was read and paid, and what was chosen."""
    scorer, _ = load_best_scorer(stage.folder, stage.recipe, stage)
    policy = Recorder(TierScorerPolicy(scorer, greedy=True))
    played = play_greedily(policy, live, weight, read_reference(stage.folder))
    modules, episodes = live.facts.modules, []
    for q, question in enumerate(live.questions):
        lane = (q, tuple(played.tier_QM[q].tolist()))
        runs = [live.find_run(lane, step) for step in range(len(modules))]
        assert all(run.failure is None for run in runs)
        filtered = [chunk.text for chunk in read_chunks(runs[0])]
        notes = {
            module.name: list(read_notes(run))
            for module, run in zip(modules[1:-1], runs[1:-1], strict=True)
        }
        retrieved = [chunk.text for chunk in stage.pipeline.retrieve(question)]
        asked: list[dict[str, Any]] = [{"texts": retrieved}, *[{"texts": filtered}] * 3]
        costs = [run.cost_usd for run in runs]
        episodes.append(
            {
                "question": question.query.text,
                "weight": weight,
                "asked": [*asked, {"texts": filtered, "notes": notes}],
                "stages": [costs[0], None, None, costs[1] + costs[2] + costs[3], costs[4]],
                "tiers": [module.tiers[k] for module, k in zip(modules, lane[1], strict=True)],
                "probabilities": [float(np.exp(one.logp_B[q])) for one in policy.decisions],
                "cost_usd": played.cost_usd_Q[q],
            }
        )
    return episodes


def read_reference(folder: Path) -> float:
    """Return the unit of costs of a run."""
    return json.loads((folder / "audit.json").read_text(encoding="utf-8"))["reference_usd"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the exported run lies."""
    to = tmp_path_factory.mktemp("exports") / "router"
    export_run(find_tier_run()[1], to)
    return to


@pytest.fixture(scope="module")
def episodes() -> list[dict[str, Any]]:
    """What the trained policy did, at three cost weights."""
    recipe, folder = find_tier_run()
    with open_memory_stage(recipe, folder) as stage:
        live = LiveOutcomes(
            stage.pipeline, stage.questions["test"], stage.encoder, stage.data.grade
        )
        return [one for weight in WEIGHTS for one in play_trained(stage, live, weight)]


# --- Decisions ------------------------------------------------------------------------------------

BLOCKED = (
    *("accelerate", "bm25s", "datasets", "deepspeed", "gymnasium", "jinja2", "json_repair"),
    *("matplotlib", "pandas", "peft", "snowballstemmer", "transformers", "trl", "vllm", "wandb"),
)
SCRIPT = """
import json, sys

for name in json.loads(sys.argv[2]):
    sys.modules[name] = None
from rlroute import TierRouter

router, played = TierRouter.load(sys.argv[1]), []
for one in json.loads(sys.stdin.read()):
    episode = router.start(one["question"], cost_weight=one["weight"])
    for module, asked, cost in zip(router.modules, one["asked"], one["stages"], strict=True):
        episode.choose(module.name, **asked)
        if cost is not None:
            episode.settle(cost)
    choices = [[choice.tier, choice.index, choice.probabilities] for choice in episode.choices]
    played.append([choices, episode.cost_usd])
ours = {name.split(".")[1] for name in sys.modules if name.startswith("rlroute.")}
assert not ours & {"trainers", "algorithms", "rollout", "evaluation", "cli"}, ours
print(json.dumps(played))
"""


def test_a_process_without_training_libraries_decides_as_the_trainer_does(
    exported: Path, episodes: list[dict[str, Any]]
) -> None:
    assert len(episodes) >= 50
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(exported), json.dumps(BLOCKED)],
        input=json.dumps(episodes),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for one, (choices, cost_usd) in zip(episodes, json.loads(done.stdout), strict=True):
        assert [tier for tier, _, _ in choices] == one["tiers"]
        for (tier, index, shares), trained in zip(choices, one["probabilities"], strict=True):
            assert list(shares)[index] == tier
            assert shares[tier] == pytest.approx(trained, abs=1e-5)
            assert sum(shares.values()) == pytest.approx(1)
        assert cost_usd == pytest.approx(one["cost_usd"])
    assert len({tuple(one["tiers"]) for one in episodes}) >= 4  # they depend on what is seen


def test_what_the_router_says_of_the_pipeline_is_what_the_pipeline_says(exported: Path) -> None:
    recipe, folder = find_tier_run()
    router = TierRouter.load(exported)
    with open_memory_stage(recipe, folder) as stage:
        assert router.modules == stage.pipeline.facts.modules
        assert router.fingerprint == stage.pipeline.facts.fingerprint
    assert router.reference_usd == read_reference(folder)
    assert router.cost_weight_range == (0.0, 1.0)
    assert router.summary["models"] == "simulated"


def decide_all(router: TierRouter, weight: float | None = None, **other: Any) -> list[TierChoice]:
    """Return the choices of an episode; `other` replaces a cost or what is read."""
    episode = router.start(other.get("question", "Where does Anna live?"), cost_weight=weight)
    episode.choose("filter", texts=other.get("retrieved", RETRIEVED))
    episode.settle(other.get("first", 0.001))
    episode.choose("entity", texts=other.get("filtered", RETRIEVED[:1]))
    episode.choose("temporal")
    episode.settle(other.get("second", 0.002))
    episode.choose("summary", notes=other.get("notes", NOTES))
    episode.settle(other.get("third", 0.0))
    return episode.choices


def test_everything_that_is_said_counts() -> None:
    router = TierRouter(make_bundle())
    usual = decide_all(router)
    changes: list[tuple[dict[str, Any], int]] = [
        ({"question": "Where does Ben work?"}, 0),
        ({"weight": 0.5}, 0),
        ({"retrieved": RETRIEVED[1:]}, 0),
        ({"first": 0.004}, 1),
        ({"filtered": RETRIEVED[1:]}, 1),
        ({"second": 0.009}, 3),
        ({"notes": NOTES | {"temporal": ["Ben - works as - nurse"]}}, 3),
        ({"notes": NOTES | {"entity": []}}, 3),  # the filtered chunks stand in
    ]
    for change, first in changes:
        choices = decide_all(router, **change)
        assert choices[:first] == usual[:first], change
        assert choices[first] != usual[first], change
    assert decide_all(router) == usual
    assert decide_all(router, 0.1) == usual  # without a cost weight the lowest counts
    # without any notes the summary is decided as if the notes were the filtered chunk
    chunk = decide_all(router, notes={"entity": RETRIEVED[:1], "temporal": []})
    nothing = decide_all(router, notes={"entity": [], "temporal": [" "]})
    assert chunk[3] == nothing[3]


def test_a_tier_that_a_module_lacks_is_never_chosen() -> None:
    router = TierRouter(make_bundle())
    shares = [list(choice.probabilities) for choice in decide_all(router)]
    assert shares == [["Low", "Mid"], ["Low", "Mid", "High"], ["Low", "Mid"], ["Low", "Mid"]]
    for choice in decide_all(router):
        assert choice.probabilities[choice.tier] == max(choice.probabilities.values())
        assert sum(choice.probabilities.values()) == pytest.approx(1)


def test_threads_share_a_router() -> None:
    router = TierRouter(make_bundle())
    weights = [0.1 + 0.05 * n for n in range(8)]
    expected = [decide_all(router, weight) for weight in weights]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda weight: decide_all(router, weight), weights)) == expected


# --- Order ----------------------------------------------------------------------------------------


def refuse(call: Callable[[], Any]) -> str:
    """Return the one line with which a call is refused."""
    with pytest.raises(RLRouteError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_order_of_the_pipeline_is_kept() -> None:
    episode = TierRouter(make_bundle()).start("Where does Anna live?")
    choose: Callable[..., Any] = episode.choose
    first = "choose for 'filter' next"
    assert refuse(lambda: episode.settle(0.1)) == f"settle: nothing is to be settled; {first}"
    assert first in refuse(lambda: choose("summary", texts=[], notes=NOTES))
    known = "(known: filter, entity, temporal, summary)"
    assert refuse(lambda: choose("topic", texts=[])) == f"choose: unknown module 'topic' {known}"
    choose("filter", texts=RETRIEVED)
    for name in ("filter", "entity"):
        assert refuse(lambda name=name: choose(name, texts=[])).startswith(
            "choose: settle filter first"
        )
    episode.settle(0.001)
    assert "nothing is to be settled; choose for 'entity' next" in refuse(
        lambda: episode.settle(0.001)
    )
    assert "not the turn of 'temporal'; choose for 'entity' next" in refuse(
        lambda: choose("temporal", texts=RETRIEVED)
    )
    choose("entity", texts=RETRIEVED)
    assert "choose for 'temporal' next" in refuse(lambda: episode.settle(0.001))
    choose("temporal")
    assert "settle entity, temporal first" in refuse(lambda: choose("summary", notes=NOTES))
    episode.settle(0.002)
    choose("summary", notes=NOTES)
    episode.settle(0.003)
    assert episode.cost_usd == pytest.approx(0.006)
    over = "all modules are decided: start another episode"
    assert over in refuse(lambda: choose("summary", notes=NOTES))
    assert over in refuse(lambda: episode.settle(0.003))
    assert [choice.module for choice in episode.choices] == [
        *("filter", "entity", "temporal", "summary"),
    ]


# --- Bad input ------------------------------------------------------------------------------------


def go_to(module: str) -> TierEpisode:
    """Return an episode in which a module is to be decided."""
    episode = TierRouter(make_bundle()).start("Where does Anna live?")
    if module != "filter":
        episode.choose("filter", texts=RETRIEVED)
        episode.settle(0.001)
    if module == "summary":
        episode.choose("entity", texts=RETRIEVED[:1])
        episode.choose("temporal", texts=RETRIEVED[:1])
        episode.settle(0.002)
    return episode


@pytest.mark.parametrize(
    ("module", "asked", "said"),
    [
        ("filter", {}, "texts are missing: give those of the retrieved chunks"),
        ("filter", {"texts": "Anna said"}, "texts takes a list of texts; write [text]"),
        ("filter", {"texts": ["Anna said", 3]}, "holds something else"),
        ("filter", {"texts": 3}, "holds something else"),
        ("filter", {"texts": [], "notes": {}}, "read by 'summary' alone, not by 'filter'"),
        ("entity", {}, "texts are missing: give those of the filtered chunks"),
        ("summary", {}, "notes are missing: give those of entity, temporal"),
        ("summary", {"notes": ["a"]}, "notes are missing"),
        ("summary", {"notes": {"entity": []}}, "notes: 'temporal' is missing; give []"),
        ("summary", {"notes": NOTES | {"topic": []}}, "unknown extractor 'topic'"),
        ("summary", {"notes": NOTES | {"entity": "a"}}, "notes of 'entity' takes a list"),
        ("summary", {"notes": NOTES | {"entity": [1]}}, "notes of 'entity' takes a list"),
        ("summary", {"notes": NOTES, "texts": RETRIEVED}, "texts differ from those that 'entity'"),
    ],
)
def test_what_cannot_be_decided_on_is_refused_and_changes_nothing(
    module: str, asked: dict[str, Any], said: str
) -> None:
    episode, again = go_to(module), go_to(module)
    before = len(episode.choices)
    assert said in refuse(lambda: episode.choose(module, **asked))
    assert len(episode.choices) == before
    good: dict[str, Any] = {"texts": RETRIEVED[:1]} | (
        {"notes": NOTES} if module == "summary" else {}
    )
    assert episode.choose(module, **good) == again.choose(module, **good)


@pytest.mark.parametrize("cost", [-0.1, float("nan"), float("inf"), 10_001, "0.1", None])
def test_a_cost_that_is_none_is_refused_and_can_be_said_again(cost: Any) -> None:
    episode = go_to("filter")
    episode.choose("filter", texts=RETRIEVED)
    assert "give USD, from 0 to 10,000" in refuse(lambda: episode.settle(cost))
    episode.settle(0.001)
    assert episode.cost_usd == 0.001


def test_questions_and_cost_weights_that_make_no_sense_are_refused() -> None:
    router = TierRouter(make_bundle())
    for question in ("", " \n", None, 3):
        assert "give its text" in refuse(lambda question=question: router.start(question))
    for weight in (0.09, 0.51, float("nan"), "0.3"):
        assert "trained for (0.1 to 0.5)" in refuse(
            lambda weight=weight: router.start("Who?", cost_weight=weight)
        )
    assert router.start("Who?", cost_weight=np.float32(0.3)).cost_usd == 0  # type: ignore[arg-type]
