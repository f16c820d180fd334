"""The warm start learns what the policy writes, in the very tokens that a rollout would hold."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from text_world import DEAD_WORLD, WORLD, make_recipe

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")

from datasets import Dataset  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from rlroute.policies.language_model import load_tokenizer  # noqa: E402
from rlroute.rollout.batching import flatten_tokens  # noqa: E402
from rlroute.rollout.engine import run_episode  # noqa: E402
from rlroute.rollout.samplers.base import Sample, SampleRequest, decode_ids  # noqa: E402
from rlroute.rollout.text_agent import TextAgent  # noqa: E402
from rlroute.trainers.sft import IGNORED, run_warm_start, tokenise_demonstration  # noqa: E402
from rlroute.trainers.text_model import KEY, load_model, make_new_model  # noqa: E402
from rlroute.trainers.text_problem import (  # noqa: E402
    TextProblem,
    TextTrajectory,
    build_problem,
    make_environment,
    write_episodes,
)
from rlroute.trainers.text_recipe import NewModelConfig, TextRecipe  # noqa: E402
from rlroute.types import Call, Reply, RLRouteError  # noqa: E402

NEW = {"kind": "new", "hidden": 16, "layers": 1, "heads": 2, "vocabulary": 400}
TEMPLATE = "{% for m in messages %}<s>user\n{{ m.content }}</s>{% endfor %}<s>assistant\n"


def make_sft_recipe(**parts: Any) -> TextRecipe:
    stated: dict[str, Any] = {
        "questions": {"kind": "relations", "train": 24, "val": 4, "test": 4, "world": WORLD},
        "policy": {"base": NEW, "precision": "float32"},
        "warm_start": {
            "planner": "random",
            "episodes": 48,
            "batch": 16,
            "epochs": 4,
            "learning_rate": 1e-2,
        },
    }
    return make_recipe(base="unused", **(stated | parts))


@pytest.fixture(scope="module")
def recipe() -> TextRecipe:
    return make_sft_recipe()


@pytest.fixture(scope="module")
def problem(recipe: TextRecipe) -> TextProblem:
    return build_problem(recipe)


@pytest.fixture(scope="module")
def episodes(recipe: TextRecipe, problem: TextProblem) -> list[TextTrajectory]:
    return write_episodes(recipe, problem)


@pytest.fixture(scope="module")
def base(episodes: list[TextTrajectory], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft") / "base"
    texts = [step.decision.text for episode in episodes for step in episode.transitions]
    make_new_model(NewModelConfig(**NEW), texts, folder, context=192, seed=0)
    return folder


@dataclasses.dataclass
class Repeat:
    """A sampler that writes the texts of a demonstration again."""

    tokenizer: Any
    texts: list[str]

    async def sample(self, request: SampleRequest) -> Sample:
        text = self.texts.pop(0)
        ids = tuple(
            self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        )
        return Sample(ids, (-1.0,) * len(ids), "stop", 0)

    async def close(self) -> None:
        """Hold nothing."""


@dataclasses.dataclass
class Overwritten:
    """Asks a pool, and puts a text into the place of every reply."""

    pool: Any
    text: str

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        found = await self.pool.ask_many(calls)
        return [dataclasses.replace(reply, text=self.text) for reply in found]


def roll_out_again(
    episode: TextTrajectory, recipe: TextRecipe, problem: TextProblem, tokenizer: Any
) -> Any:
    """Return the row of tokens that a rollout makes of the texts of a demonstration."""
    agent = TextAgent(
        Repeat(tokenizer, [step.decision.text for step in episode.transitions]),
        tokenizer,
        action_seed=0,
        max_new_tokens=64,
        context_tokens=1000,
        temperature=1.0,
    )
    environment = make_environment(recipe, problem)
    played = run_episode(environment, agent, problem.pool, episode.query, episode_seed=episode.seed)
    return flatten_tokens(asyncio.run(played))


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "chat"])
def test_ids_and_labels_are_those_of_a_rollout_of_the_same_texts(
    template: str | None,
    recipe: TextRecipe,
    problem: TextProblem,
    episodes: list[TextTrajectory],
    base: Path,
) -> None:
    tokenizer = load_tokenizer(base, KEY)
    tokenizer.chat_template = template
    assert {len(episode.transitions) for episode in episodes} >= {2, 3}
    for episode in episodes[:12]:
        found = tokenise_demonstration(episode, tokenizer)
        row = roll_out_again(episode, recipe, problem, tokenizer)
        assert found["input_ids"] == [*row.prompt_ids, *row.completion_ids]
        mask = [0] * len(row.prompt_ids) + list(row.policy_mask)
        assert found["labels"] == [
            token if own else IGNORED for token, own in zip(found["input_ids"], mask, strict=True)
        ]
        own = [token for token in found["labels"] if token != IGNORED]
        texts = [step.decision.text for step in episode.transitions]
        assert decode_ids(tokenizer, own) == "".join(texts)


def test_special_tokens_that_a_reply_spells_are_letters_wherever_they_are_repeated(
    recipe: TextRecipe, problem: TextProblem, base: Path
) -> None:
    # the reply is read first, and then repeated by the script as the name it asks about next
    tokenizer = load_tokenizer(base, KEY)
    spoilt = dataclasses.replace(problem, pool=Overwritten(problem.pool, "</s><pad> Bo <s>"))
    episodes = write_episodes(recipe, spoilt)
    episode = next(item for item in episodes if "<pad>" in item.transitions[-1].decision.text)
    found = tokenise_demonstration(episode, tokenizer)
    row = roll_out_again(episode, recipe, spoilt, tokenizer)
    special = set(tokenizer.all_special_ids)
    assert not special & set(row.completion_ids)
    assert found["input_ids"] == [*row.prompt_ids, *row.completion_ids]


def test_trl_trains_on_the_labels_as_they_are(
    episodes: list[TextTrajectory], base: Path, recipe: TextRecipe, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(base, KEY)
    rows = [tokenise_demonstration(episode, tokenizer) for episode in episodes[:4]]
    trainer = SFTTrainer(
        model=load_model(recipe.policy, base, value_head=False),
        args=SFTConfig(
            output_dir=str(tmp_path), max_length=192, bf16=False, use_cpu=True, report_to="none"
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    assert [row["input_ids"] for row in trainer.train_dataset] == [r["input_ids"] for r in rows]
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        length = len(row["input_ids"])
        assert ids[:length].tolist() == row["input_ids"]
        assert labels[:length].tolist() == row["labels"]
        assert (labels[length:] == IGNORED).all()
    # what is not learnt moves nothing: a mean over the policy's tokens alone
    model = trainer.model
    with torch.no_grad():
        logp_BTV = (
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            .logits[:, :-1]
            .log_softmax(-1)
        )
    target_BT = batch["labels"][:, 1:]
    own_BT = target_BT != IGNORED
    picked_BT = logp_BTV.gather(2, target_BT.clamp(min=0)[:, :, None])[:, :, 0]
    expected = -picked_BT[own_BT].mean()
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(batch))
    assert float(loss) == pytest.approx(float(expected), abs=1e-4)


def score_demonstrations(model: Any, rows: Sequence[dict[str, list[int]]], *, own: bool) -> float:
    """Return the mean log-probability of the tokens that are learnt, or of the others."""
    found = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logp_TV = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        logp_T = logp_TV.gather(1, ids[0, 1:, None])[:, 0]
        found.append(logp_T[(torch.tensor(row["labels"][1:]) != IGNORED) == own])
    return float(torch.cat(found).mean())


def test_a_warm_start_learns_the_policys_texts_and_not_the_replies(
    recipe: TextRecipe, episodes: list[TextTrajectory], base: Path, tmp_path: Path
) -> None:
    run_warm_start(recipe, base, episodes, tmp_path / "warm", cpu=True)
    tokenizer = load_tokenizer(tmp_path / "warm", KEY)
    rows = [tokenise_demonstration(episode, tokenizer) for episode in episodes[:16]]
    models = [
        load_model(recipe.policy, source, value_head=False) for source in (base, tmp_path / "warm")
    ]
    own = [score_demonstrations(model, rows, own=True) for model in models]
    others = [score_demonstrations(model, rows, own=False) for model in models]
    assert own[1] > own[0] + 1
    assert own[1] - own[0] > 2 * (others[1] - others[0])
    assert tokenizer.get_vocab() == load_tokenizer(base, KEY).get_vocab()


def test_failed_demonstrations_are_left_out_and_none_at_all_is_an_error() -> None:
    questions = {
        "kind": "relations",
        "train": 24,
        "val": 4,
        "test": 4,
        "world": WORLD | DEAD_WORLD,
    }
    recipe = make_sft_recipe(questions=questions)
    found = write_episodes(recipe, build_problem(recipe))
    assert 0 < len(found) < 48
    assert all(episode.failure is None for episode in found)
    dead = {
        name: spec | {"failures": {"server": 1.0}}
        for name, spec in DEAD_WORLD["specialists"].items()
    }
    world = WORLD | {"specialists": dead, "generalists": {}}
    recipe = make_sft_recipe(questions=questions | {"world": world})
    with pytest.raises(RLRouteError, match="every scripted episode had a failed call"):
        write_episodes(recipe, build_problem(recipe))
