import numpy as np
import pytest

from rlroute.data.encoders import MinilmConfig, TfidfConfig, fit_encoder
from rlroute.memory.base import History, Session, Turn
from rlroute.memory.config import RetrieverConfig
from rlroute.memory.retriever import Retriever, fuse_rankings, rank, share_embedder
from rlroute.types import RLRouteError

TEXTS = (
    "The weather has been awful.",
    "I adopted a kitten from the shelter.",
    "My cellar was flooded on Tuesday.",
    "I practise scales on the cello.",
)
HISTORIES = {
    "h": History("h", (Session("2023-05-08", tuple(Turn(text, "Anna", text) for text in TEXTS)),)),
    "empty": History("empty"),
}


class CountingEncoder:
    """Counts letters; two texts of the same letters are equal. It records what it is asked."""

    kind = "letters"
    dimension = 26

    def __init__(self):
        self.asked = []

    def encode(self, texts):
        self.asked += texts
        rows = [[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts]
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), 26)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def fingerprint(self):
        return "letters"


@pytest.fixture(scope="module")
def minilm():
    return fit_encoder(MinilmConfig(), (), seed=0)


def find(kind, encoder, question, top=4):
    retriever = Retriever(RetrieverConfig(kind=kind, top=top), HISTORIES, 12, encoder)
    return [chunk.turn_ids[0] for chunk in retriever.retrieve(question, "h")]


def test_bm25_finds_other_forms_of_a_word():
    assert find("bm25", CountingEncoder(), "Whose cello? She was practising scale!")[0] == TEXTS[3]


def test_bm25_without_a_known_word_returns_chunks_in_the_order_of_the_history():
    assert find("bm25", CountingEncoder(), "zebra", top=3) == list(TEXTS[:3])
    assert find("bm25", CountingEncoder(), "", top=3) == list(TEXTS[:3])


def test_the_encoder_finds_a_meaning_without_a_common_word(minilm):
    assert find("encoder", minilm, "Does she have any pets?")[0] == TEXTS[1]
    assert find("encoder", minilm, "musical instruments")[0] == TEXTS[3]


def test_hybrid_fuses_both_rankings(minilm):
    assert find("hybrid", minilm, "Which musical instrument is it, the cello?")[0] == TEXTS[3]


def test_fusion_adds_reciprocal_ranks_and_counts_no_words_that_are_not_shared():
    fused_N = fuse_rankings(np.float32([0, 2, 0]), np.float32([0.9, 0.1, 0.5]))
    assert fused_N == pytest.approx([1 / 61, 1 / 63 + 1 / 61, 1 / 62])
    assert rank(fused_N).tolist() == [1, 0, 2]


def test_equal_scores_stand_in_the_order_of_the_history():
    assert rank(np.float32([1, 3, 1, 3])).tolist() == [1, 3, 0, 2]
    swapped_N = fuse_rankings(np.float32([2, 1]), np.float32([0.1, 0.2]))
    assert swapped_N[0] == swapped_N[1]


def test_no_more_than_top_chunks_come_back():
    assert len(find("hybrid", CountingEncoder(), "cello", top=2)) == 2


def test_a_history_without_text_has_no_chunks():
    retriever = Retriever(RetrieverConfig(), HISTORIES, 12, CountingEncoder())
    assert retriever.retrieve("cello", "empty") == ()


def test_a_text_is_encoded_once():
    encoder = CountingEncoder()
    retriever = Retriever(RetrieverConfig(kind="encoder"), HISTORIES, 12, encoder)
    retriever.retrieve("cello", "h")
    retriever.retrieve("kitten", "h")
    retriever.embed_chunks(retriever.list_chunks("h"))
    assert len(encoder.asked) == len(set(encoder.asked)) == len(TEXTS) + 2


def test_chunk_embeddings_are_those_of_the_encoder(minilm):
    retriever = Retriever(RetrieverConfig(), HISTORIES, 12, minilm)
    chunks = retriever.list_chunks("h")
    vector_NE = retriever.embed_chunks(chunks)
    expected_NE = minilm.encode([chunk.text for chunk in chunks])
    np.testing.assert_allclose(vector_NE, expected_NE, atol=1e-6)
    assert retriever.embed_chunks(()).shape == (0, 384)


def test_the_fingerprint_covers_settings_and_encoder(minilm):
    def hash_of(config, tokens=12, encoder=minilm):
        return Retriever(config, HISTORIES, tokens, encoder).fingerprint()

    base = hash_of(RetrieverConfig())
    assert base == hash_of(RetrieverConfig())
    others = {
        hash_of(RetrieverConfig(kind="bm25")),
        hash_of(RetrieverConfig(top=3)),
        hash_of(RetrieverConfig(), tokens=13),
        hash_of(RetrieverConfig(), encoder=CountingEncoder()),
    }
    assert base not in others
    assert len(others) == 4


def test_an_unknown_history_is_named_with_some_that_are_there():
    retriever = Retriever(RetrieverConfig(), HISTORIES, 12, CountingEncoder())
    with pytest.raises(RLRouteError, match="history 'x' is not there; there are 2, such as empty"):
        retriever.retrieve("cello", "x")


def test_an_encoder_that_has_to_be_fitted_is_refused():
    with pytest.raises(RLRouteError, match="'tfidf' is fitted on train texts"):
        share_embedder(TfidfConfig())
