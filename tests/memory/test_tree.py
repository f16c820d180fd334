"""The tree of a question: 273 module runs, arrays that agree with them, a checked folder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tier_worlds import (
    PRICES,
    ArithmeticPipeline,
    HashEncoder,
    grade,
    make_questions,
    make_tree,
)

from rlroute.memory.enumerate import QUESTIONS_AT_ONCE, enumerate_tree
from rlroute.memory.states import combine_notes
from rlroute.memory.tree import TREE_ARRAYS, TierTree
from rlroute.memory.tree_files import ARRAYS_FILE, HEADER_FILE, load_tree, save_tree
from rlroute.types import RLRouteError

RAGGED = (2, 3, 2, 4)  # a filter with two tiers, extractors with three and two, a summary with four


def assert_same(left: TierTree, right: TierTree) -> None:
    assert left.facts == right.facts
    assert left.questions == right.questions
    for name in TREE_ARRAYS:
        assert getattr(left, name).dtype == TREE_ARRAYS[name]
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def walk(tree: TierTree, question: int, tiers: tuple[int, ...]) -> tuple[list[float], float]:
    """Return what each step of one episode costs, and its score."""
    index_1, tier_1M = np.array([question]), np.array([tiers])
    costs = [float(tree.run(index_1, step, tier_1M)[0]) for step in range(len(tiers))]
    return costs, float(tree.answer(index_1, tier_1M).score_B[0])


# --- Enumeration ----------------------------------------------------------------------------------


def test_a_question_of_three_tiers_and_five_modules_costs_273_module_runs_and_243_answers():
    pipeline = ArithmeticPipeline()
    pipeline.fewest = 1  # so that no two ways have equal notes
    enumerate_tree(pipeline, make_questions(2), HashEncoder(), grade)
    for question in ("q0", "q1"):
        by_step = [pipeline.module_runs[step, question] for step in range(5)]
        assert by_step == [3, 9, 9, 9, 243]
        assert sum(by_step) == 273
        assert pipeline.answers[question] == 243


def test_equal_notes_are_summarised_once_and_equal_summaries_answered_once():
    pipeline = ArithmeticPipeline()
    enumerate_tree(pipeline, make_questions(1), HashEncoder(), grade)
    assert pipeline.answers["q0"] == pipeline.module_runs[4, "q0"] < 243


def test_equal_outputs_of_two_filter_tiers_are_built_on_once():
    pipeline = ArithmeticPipeline()
    pipeline.alike = {1}
    enumerate_tree(pipeline, make_questions(1), HashEncoder(), grade)
    assert [pipeline.module_runs[step, "q0"] for step in range(4)] == [3, 6, 6, 6]


def test_a_second_enumeration_makes_no_module_call_and_the_same_tree():
    pipeline, questions = ArithmeticPipeline(), make_questions(3)
    first = enumerate_tree(pipeline, questions, HashEncoder(), grade)
    runs = pipeline.module_runs.total()
    second = enumerate_tree(pipeline, questions, HashEncoder(), grade)
    assert pipeline.module_runs.total() == runs
    assert_same(first, second)


def test_a_tree_does_not_depend_on_the_questions_beside_and_progress_is_told():
    told: list[int] = []
    questions = make_questions(QUESTIONS_AT_ONCE + 3)
    tree = enumerate_tree(
        ArithmeticPipeline(RAGGED), questions, HashEncoder(), grade, progress=told.append
    )
    assert told == [QUESTIONS_AT_ONCE, 3]
    chosen = [QUESTIONS_AT_ONCE + 1, 2]
    alone = enumerate_tree(
        ArithmeticPipeline(RAGGED), [questions[q] for q in chosen], HashEncoder(), grade
    )
    assert_same(tree.select(chosen), alone)


def test_texts_are_encoded_once():
    encoder = HashEncoder()
    enumerate_tree(ArithmeticPipeline(), make_questions(QUESTIONS_AT_ONCE + 1), encoder, grade)
    assert max(encoder.encoded.values()) == 1


def test_a_tree_of_no_question_is_refused():
    with pytest.raises(RLRouteError, match="at least one question"):
        enumerate_tree(ArithmeticPipeline(), (), HashEncoder(), grade)


# --- Looking up -----------------------------------------------------------------------------------


def test_costs_are_those_of_the_modules_by_hand():
    tree = make_tree(2)
    costs, _ = walk(tree, 1, (1, 0, 2, 1, 0))  # the middle filter keeps three of four chunks
    assert costs[0] == PRICES[1] * 4
    assert costs[1:3] == [0.0, 0.0]
    assert costs[3] == PRICES[0] * 4 + PRICES[2] * 4 + PRICES[1] * 4
    leaf = int(tree.facts.number_leaves(np.array([[1, 0, 2, 1, 0]]))[0])
    assert tree.leaf_cost_QL[1, leaf] == 0.0 + costs[0] + costs[3] + costs[4]


@pytest.mark.parametrize("counts", [(3, 3, 3, 3, 3), RAGGED, (2, 2, 2)])
def test_every_leaf_has_the_cost_and_score_of_its_steps(counts):
    tree = make_tree(3, counts)
    for question in range(3):
        for leaf, tiers in enumerate(tree.facts.list_leaves()):
            costs, score = walk(tree, question, tuple(tiers))
            assert sum(costs) == tree.leaf_cost_QL[question, leaf]
            assert score == tree.leaf_score_QL[question, leaf]


def test_the_state_of_a_summary_is_the_mean_over_those_who_have_notes():
    notes_BXE = np.array([[[1.0, 0.0], [0.0, 1.0]]] * 3, dtype=np.float32)
    has_BX = np.array([[True, True], [False, True], [False, False]])
    filtered_BE = np.full((3, 2), 7.0, dtype=np.float32)
    state_BE = combine_notes(notes_BXE, has_BX, filtered_BE)
    assert state_BE.tolist() == [[0.5, 0.5], [0.0, 1.0], [7.0, 7.0]]
    assert state_BE.dtype == np.float32


def test_states_before_filter_and_extractors_are_mean_embeddings_of_chunks():
    tree, pipeline, questions = make_tree(2), ArithmeticPipeline(), make_questions(2)
    vector_CE = HashEncoder().encode([chunk.text for chunk in pipeline.retrieve(questions[1])])
    index_1, tier_1M = np.array([1]), np.array([[2, 0, 0, 0, 0]])  # the third filter keeps two
    np.testing.assert_allclose(tree.look(index_1, 0, tier_1M)[0], vector_CE.mean(axis=0), rtol=1e-6)
    for step in (1, 2, 3):
        np.testing.assert_allclose(
            tree.look(index_1, step, tier_1M)[0], vector_CE[:2].mean(axis=0), rtol=1e-6
        )


def test_a_failed_run_makes_all_that_depends_on_it_nan_and_nothing_else():
    failing = [(0, 2, "q0"), (2, 1, "q1"), (4, 0, "q2")]
    tree, sound = make_tree(3, failing=failing), make_tree(3)
    tier_LM = tree.facts.list_leaves()
    lost_QL = np.stack([tier_LM[:, 0] == 2, tier_LM[:, 2] == 1, tier_LM[:, 4] == 0])
    for name in ("leaf_cost_QL", "leaf_score_QL", "answer_cost_QL"):
        np.testing.assert_array_equal(
            getattr(tree, name), np.where(lost_QL, np.nan, getattr(sound, name)), err_msg=name
        )
    assert np.isnan(walk(tree, 0, (2, 0, 0, 0, 0))[0]).all()
    assert np.isnan(walk(tree, 1, (0, 0, 1, 0, 0))[0]).tolist() == [False] * 3 + [True] * 2
    assert np.isnan(walk(tree, 2, (0, 0, 0, 0, 0))[0]).tolist() == [False] * 4 + [True]
    for question, tiers, first in ((0, (2, 0, 0, 0, 0), 1), (1, (0, 0, 1, 0, 0), 4)):
        index_1, tier_1M = np.array([question]), np.array([tiers])
        states = [tree.look(index_1, step, tier_1M) for step in range(5)]
        assert [bool(state.any()) for state in states] == [step < first for step in range(5)]


def test_a_failed_answer_leaves_costs_of_modules_and_no_score():
    pipeline = ArithmeticPipeline()
    pipeline.failing_answers = {"q1"}
    tree = enumerate_tree(pipeline, make_questions(2), HashEncoder(), grade)
    assert np.isnan(tree.leaf_score_QL).all(axis=1).tolist() == [False, True]
    assert np.isnan(tree.answer_cost_QL).all(axis=1).tolist() == [False, True]
    assert not np.isnan(tree.leaf_cost_QL).any()


def test_the_dearest_static_choice_and_the_largest_costs():
    tree = make_tree(5, RAGGED, failing=[(0, 0, "q0"), (3, 3, "q1")])
    means = np.nanmean(tree.leaf_cost_QL, axis=0)
    assert tree.find_reference_cost() == pytest.approx(means.max(), rel=1e-12)
    largest_MK = tree.find_largest_costs()
    assert largest_MK.shape == (4, 4)
    assert np.isinf(largest_MK).tolist() == [
        [False, False, True, True],
        [False, False, False, True],
        [False, False, True, True],
        [False, False, False, False],
    ]
    assert largest_MK[0, 1] == PRICES[1] * 4
    assert largest_MK[1, 2] == PRICES[2] * 5
    assert largest_MK[3, 2] == np.nanmax(tree.summary_cost_QL[:, 2::4])


# --- Folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [(), [(0, 1, "q1"), (1, 0, "q2")]])
def test_a_tree_comes_back_from_its_folder(tmp_path, failing):
    tree = make_tree(4, RAGGED, failing)
    save_tree(tree, tmp_path / "tree")
    found = load_tree(
        tmp_path / "tree",
        questions=tree.questions,
        fingerprint="arithmetic",
        encoder_fingerprint="hash-encoder",
    )
    assert_same(tree, found)
    assert load_tree(tmp_path / "tree").encoder_fingerprint == "hash-encoder"
    save_tree(tree.select([2]), tmp_path / "tree")  # takes the old one's place
    assert load_tree(tmp_path / "tree").questions == tree.questions[2:3]


def test_a_tree_of_other_questions_pipeline_or_encoder_is_refused(tmp_path):
    tree = make_tree(3, (2, 2, 2))
    save_tree(tree, tmp_path)
    with pytest.raises(RLRouteError, match=r"other questions \(3 there, 2 here\)"):
        load_tree(tmp_path, questions=tree.questions[:2])
    changed = replace(tree.questions[0], evidence=("another turn",))
    with pytest.raises(RLRouteError, match="other questions"):
        load_tree(tmp_path, questions=(changed, *tree.questions[1:]))
    with pytest.raises(RLRouteError, match=r"another pipeline \(fingerprint arithmetic there, x h"):
        load_tree(tmp_path, fingerprint="x")
    with pytest.raises(RLRouteError, match="another encoder"):
        load_tree(tmp_path, encoder_fingerprint="x")


def break_version(folder):
    data = json.loads((folder / HEADER_FILE).read_text())
    (folder / HEADER_FILE).write_text(json.dumps(data | {"format_version": 99}))


def break_questions(folder):
    data = json.loads((folder / HEADER_FILE).read_text())
    data["questions"].pop()
    (folder / HEADER_FILE).write_text(json.dumps(data))


def break_names(folder):
    from safetensors.numpy import load, save

    arrays = load((folder / ARRAYS_FILE).read_bytes())
    del arrays["leaf_score_QL"]
    (folder / ARRAYS_FILE).write_bytes(save(arrays))


def break_types(folder):
    from safetensors.numpy import load, save

    arrays = load((folder / ARRAYS_FILE).read_bytes())
    arrays["summary_cost_QL"] = arrays["summary_cost_QL"].astype(np.float32)
    (folder / ARRAYS_FILE).write_bytes(save(arrays))


def tear(folder):
    content = (folder / ARRAYS_FILE).read_bytes()
    (folder / ARRAYS_FILE).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_version, "format_version 99 cannot be read"),
        (break_questions, "query_QE is float32"),
        (break_names, "holds other arrays"),
        (break_types, "summary_cost_QL is float32"),
        (tear, "torn or no safetensors file"),
        (lambda folder: (folder / HEADER_FILE).write_text("{"), "torn or not JSON"),
        (lambda folder: (folder / HEADER_FILE).write_text("{}"), "format_version None"),
        (lambda folder: (folder / ARRAYS_FILE).unlink(), "cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, damage, message):
    save_tree(make_tree(2, (2, 2, 2)), tmp_path)
    damage(tmp_path)
    with pytest.raises(RLRouteError, match=message) as caught:
        load_tree(tmp_path)
    assert "\n" not in str(caught.value)
