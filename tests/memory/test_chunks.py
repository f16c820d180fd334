import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.memory.base import Chunk, History, Session, Turn
from rlroute.memory.chunks import (
    count_words,
    read_line,
    render_turn,
    split_history,
    split_sentences,
)
from rlroute.types import RLRouteError


def talk(*texts: str, when: str = "2023-05-08", first: int = 1) -> Session:
    return Session(
        when, tuple(Turn(f"t{index}", "Anna", text) for index, text in enumerate(texts, first))
    )


def test_turns_are_packed_greedily_until_the_tokens_are_used_up():
    # Each line has 6 tokens: Anna, said, two quotation marks, one word, one mark.
    history = History("h", (talk("One.", "Two.", "Three."),))
    assert count_words('Anna said "One."') == 6
    assert split_history(history, 12) == (
        Chunk("h:0:0", 'Anna said "One."\nAnna said "Two."', "2023-05-08", ("t1", "t2")),
        Chunk("h:0:1", 'Anna said "Three."', "2023-05-08", ("t3",)),
    )


def test_a_chunk_never_spans_two_sessions_and_keeps_the_date_of_its_own():
    history = History("h", (talk("One."), talk("Two.", when="2023-06-01", first=2)))
    chunks = split_history(history, 100)
    assert [(chunk.id, chunk.when) for chunk in chunks] == [
        ("h:0:0", "2023-05-08"),
        ("h:1:0", "2023-06-01"),
    ]


def test_a_shared_picture_stands_after_what_was_said():
    assert render_turn("Anna", "Look!", "a photo of a dog") == (
        'Anna said "Look!" and shared a photo of a dog'
    )


def test_line_breaks_of_a_turn_become_spaces_so_that_a_line_is_a_turn():
    assert render_turn("Anna", "One.\n\nTwo.") == 'Anna said "One. Two."'


def test_a_longer_turn_is_cut_into_lines_that_lose_no_word():
    words = [f"word{index}" for index in range(20)]
    chunks = split_history(History("h", (talk(" ".join(words)),)), 10)
    assert [chunk.turn_ids for chunk in chunks] == [("t1",)] * 4  # 4 tokens frame 6 words
    said = [read_line(line).text for chunk in chunks for line in chunk.text.splitlines()]
    assert " ".join(said).split() == words
    assert {read_line(chunk.text).speaker for chunk in chunks} == {"Anna"}


def test_the_caption_of_a_longer_turn_stands_on_its_last_line():
    turn = Turn("t1", "Anna", "one two three four five", "a dog")
    chunks = split_history(History("h", (Session("", (turn,)),)), 10)
    assert chunks[-1].text.endswith(" and shared a dog")
    assert sum("shared" in chunk.text for chunk in chunks) == 1


def test_documents_are_numbered_packed_and_split_at_sentence_ends():
    long = "Rome is old. Oslo is cold. Bonn is small."
    chunks = split_history(History("h", documents=("A.", "B.", long)), 12)
    assert [chunk.text for chunk in chunks] == [
        "Document 1: A.\nDocument 2: B.",
        "Document 3: Rome is old. Oslo is cold.",  # 3 tokens of header, 4 of each sentence
        "Document 3: Bonn is small.",
    ]
    assert {chunk.turn_ids for chunk in chunks} == {()}
    assert chunks[0].id == "h:0:0"


def test_documents_stand_in_a_session_after_the_last():
    history = History("h", (talk("One."),), ("A.",))
    assert [chunk.id for chunk in split_history(history, 50)] == ["h:0:0", "h:1:0"]


def test_a_text_without_blanks_is_cut_inside():
    chunks = split_history(History("h", documents=("x" * 10,)), 14, len)
    assert [chunk.text for chunk in chunks] == ["Document 1: xx"] * 5


def test_a_quotation_inside_a_turn_is_read_back_whole():
    line = render_turn("Anna", 'He said "no" twice', "a photo")
    assert read_line(line) == ("Anna", 'He said "no" twice')


def test_a_line_of_a_document_has_no_speaker():
    assert read_line("Document 1: Rome is old.") == ("", "Document 1: Rome is old.")


def test_sentences_end_at_marks_that_blanks_follow():
    assert split_sentences("It cost 3.50. Really? Yes!") == ["It cost 3.50.", "Really?", "Yes!"]


def test_a_limit_below_one_token_is_refused():
    with pytest.raises(RLRouteError, match="max_tokens 0: it must be 1 or more"):
        split_history(History("h"), 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="ab .!?\n", max_size=60), max_size=6),
    st.integers(min_value=8, max_value=30),
)
def test_chunks_fit_keep_order_and_hold_every_word(texts, limit):
    history = History("h", (talk(*texts),))
    chunks = split_history(history, limit)
    assert all(count_words(chunk.text) <= limit or "\n" not in chunk.text for chunk in chunks)
    lines = [line for chunk in chunks for line in chunk.text.splitlines()]
    assert "".join(read_line(line).text for line in lines).replace(" ", "") == "".join(
        "".join(texts).split()
    )
    ids = [turn_id for chunk in chunks for turn_id in chunk.turn_ids]
    assert list(dict.fromkeys(ids)) == [f"t{index}" for index in range(1, len(texts) + 1)]
