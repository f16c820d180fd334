import asyncio

import pytest

from rlroute.data.encoders import MinilmConfig, TfidfConfig
from rlroute.memory.base import Chunk, MemoryQuestion, ModuleInput
from rlroute.memory.chunks import count_words, render_turn
from rlroute.memory.config import EncoderTierSpec, ModuleSpec, RulesTierSpec
from rlroute.memory.encoder_tiers import ADVICE, cut_object, make_encoder_tier
from rlroute.memory.lexicon import RELATIONS
from rlroute.memory.retriever import share_embedder
from rlroute.memory.rules import Sentence
from rlroute.types import Query, RLRouteError, Usage

RULES = RulesTierSpec(kind="rules")
SPEC = EncoderTierSpec(kind="encoder", price=0.02)
OBJECTS = {
    **{"home": "Lisbon", "job": "a nurse", "employer": "Acme", "pet": "Biscuit", "car": "a Volvo"},
    **{"partner": "Edwin", "instrument": "the oboe", "food": "bean stew", "place": "Oslo"},
    **{"event": "the Chess Open", "purchase": "a brass lamp"},
}


@pytest.fixture(scope="module", autouse=True)
def minilm():
    return share_embedder(MinilmConfig())


def make(name, role="extract", keep=5, relations=(), spec=SPEC):
    module = ModuleSpec(name=name, role=role, relations=relations, tiers=(RULES, RULES))
    return make_encoder_tier(module, spec, "mid", keep)


def ask(text, *chunks, notes=None):
    return ModuleInput(MemoryQuestion(Query("q", text), "h"), chunks, notes or {})


def say(*texts, speaker="Anna", when="2023-05-08", id="h:0:0"):
    return Chunk(id, "\n".join(render_turn(speaker, text) for text in texts), when)


def run(tier, *inputs):
    return [item.output for item in asyncio.run(tier.run_many(inputs))]


def take_notes(name, *texts, relations=(), **options):
    return run(make(name, relations=relations), ask("?", say(*texts, **options)))[0]


# The filter


def test_the_filter_finds_a_meaning_without_a_common_word_and_drops_what_is_far():
    chunks = [
        say("The train was late again.", id="train"),
        say("We adopted a kitten from the shelter.", id="kitten"),
        say("Everything is so expensive.", id="money"),
    ]
    kept = run(make("filter", "filter"), ask("What sort of cat did they adopt?", *chunks))[0]
    assert [chunk.id for chunk in kept] == ["kitten"]


def test_the_filter_keeps_the_first_chunks_where_none_reaches_the_threshold():
    spec = EncoderTierSpec(kind="encoder", price=0.02, threshold=1.0)
    chunks = [say(text, id=text) for text in ("one", "two", "three")]
    kept = run(make("filter", "filter", keep=2, spec=spec), ask("kettle", *chunks))[0]
    assert [chunk.id for chunk in kept] == ["one", "two"]


def test_shared_words_count_with_three_tenths(minilm):
    chunk = say("The red kettle is in the kitchen.", id="kettle")
    question = "Where is the red kettle of Anna?"  # its three words are all in the chunk
    vectors = minilm.encoder.encode([question, chunk.text])
    score = 0.7 * float(vectors[0] @ vectors[1]) + 0.3

    def keeps(threshold):
        spec = EncoderTierSpec(kind="encoder", price=0.02, threshold=threshold)
        other = say("Good morning.", id="other")
        kept = run(make("filter", "filter", spec=spec), ask(question, other, chunk))[0]
        return [item.id for item in kept] == ["kettle"]

    assert keeps(score - 1e-3)
    assert not keeps(score + 1e-3)


# Extractors


def test_every_way_of_the_lexicon_is_understood():
    texts = [way.format(OBJECTS[item.name]) for item in RELATIONS.values() for way in item.ways]
    expected = tuple(
        f"Anna - {item.phrase} - {OBJECTS[item.name]}"
        for item in RELATIONS.values()
        for _ in item.ways
    )
    assert take_notes("entity", *texts, when="") == tuple(dict.fromkeys(expected))


def test_other_words_for_a_relation_are_understood_by_meaning():
    texts = ("I've settled down in Porto.", "We got a kitten named Milo.", "I got engaged to Paul.")
    assert take_notes("entity", *texts) == (
        "Anna - lives in - Porto (said 2023-05-08)",
        "Anna - has a pet called - Milo (said 2023-05-08)",
        "Anna - is together with - Paul (said 2023-05-08)",
    )


def test_small_talk_and_what_is_denied_or_wished_for_is_no_fact():
    texts = (
        *("The weather has been awful lately.", "How was your weekend?", "I am so tired today."),
        *(
            "I would love to live in Paris one day.",
            "I don't play the guitar.",
            "The bus was late.",
        ),
        *("I almost bought a car.", "I slept badly last night.", "I need to do my laundry."),
    )
    assert take_notes("entity", *texts) == ()


def test_a_relative_of_the_speaker_is_not_the_speaker():
    assert take_notes("entity", "My cousin lives in Rome.") == (
        "Anna's cousin - lives in - Rome (said 2023-05-08)",
    )


def test_temporal_resolves_relative_dates_against_the_day_of_the_chunk():
    texts = ("I visited Rome last Friday.", "I went to the book fair two weeks ago.")
    assert take_notes("temporal", *texts, "I visited Oslo on 2 March 2023.", "I saw Riga.") == (
        "Anna - visited - Rome (on 2023-05-05)",
        "Anna - attended - the book fair (on 2023-04-24)",
        "Anna - visited - Oslo (on 2023-03-02)",
    )
    assert take_notes("temporal", texts[0], when="") == ()


def test_topic_collects_objects_over_chunks():
    chunks = (say("I visited Rome."), say("I travelled to Oslo, and I play the cello."))
    assert run(make("topic"), ask("?", *chunks))[0] == (
        "Anna - visited - Rome; Oslo",
        "Anna - plays - the cello",
    )


def test_sentences_of_relations_that_are_not_asked_for_belong_to_no_other():
    texts = ("I live in Lisbon.", "I travelled to Oslo.")
    assert take_notes("travel", *texts, relations=("place",), when="") == ("Anna - visited - Oslo",)


@pytest.mark.parametrize(
    ("text", "relation", "thing"),
    [
        ("I drive a red Fiat", "car", "a red Fiat"),
        ("I bought a Kia to drive", "car", "a Kia"),
        ("I adopted Luna, my pet", "pet", "Luna"),
        ("My desk stands at Harrow and Pine now", "employer", "Harrow and Pine"),
        ("These days I earn my living as a carpenter", "job", "a carpenter"),
        ("I came out of the shop with a wool coat", "purchase", "a wool coat"),
        ("Luna keeps me awake", "pet", "Luna"),
        ("so tired", "pet", ""),
    ],
)
def test_objects_are_cut_out(text, relation, thing):
    assert cut_object(Sentence("Anna", text, "", "", ""), RELATIONS[relation]) == thing


def test_a_document_is_about_the_name_that_a_sentence_begins_with():
    chunk = Chunk("h:0:0", "Document 1: x. Maria lives in Rome. Nothing is known of others.")
    assert run(make("entity"), ask("?", chunk))[0] == ("Maria - lives in - Rome",)


# Summary


def test_the_summary_has_sections_by_nearness_notes_by_date_and_no_chunks():
    notes = {
        "entity": (
            "Anna - drives - a Kia (said 2023-05-08)",
            "Anna - drives - a Fiat (said 2023-01-02)",
        ),
        "topic": ("Anna - visited - Rome; Oslo", "ANNA - drives - a kia (said 2023-05-08)"),
        "temporal": (),
    }
    item = ask("Which cities did Anna visit?", say("Never shown."), notes=notes)
    assert run(make("summary", "summary"), item)[0] == "\n\n".join(
        [
            "Topic notes\nAnna - visited - Rome; Oslo",
            "Entity notes\nAnna - drives - a Fiat (said 2023-01-02)\n"
            "Anna - drives - a Kia (said 2023-05-08)",
            ADVICE,
        ]
    )


def test_a_summary_without_notes_says_so():
    assert run(make("summary", "summary"), ask("?", say("Hi.")))[0] == (
        f"There are no notes.\n\n{ADVICE}"
    )


# Cost, identity


def test_what_is_read_is_charged_by_token_each_time():
    chunk = say("I live in Rome.")
    question = "Where does Anna live?"
    tokens = {
        ("filter", "filter"): count_words(question) + count_words(chunk.text),
        ("entity", "extract"): count_words(chunk.text),
        ("summary", "summary"): count_words(question) + count_words("A - b - c"),
    }
    assert list(tokens.values()) == [14, 9, 10]
    for (name, role), count in tokens.items():
        tier = make(name, role, spec=EncoderTierSpec(kind="encoder", price=2.0))
        item = ask(question, chunk, notes={"entity": ("A - b - c",)})
        runs = [asyncio.run(tier.run_many([item]))[0] for _ in range(2)]
        assert [entry.cost_usd for entry in runs] == pytest.approx([count * 2e-6] * 2)
        assert runs[0].usage == Usage(count, 0, estimated=True)


def test_a_run_depends_on_its_own_input_only():
    items = [ask("Where does Anna live?", say(text)) for text in ("I live in Rome.", "Hello!")]
    for name, role in (("filter", "filter"), ("entity", "extract"), ("summary", "summary")):
        tier = make(name, role)
        together = asyncio.run(tier.run_many(items))
        assert together == [asyncio.run(make(name, role).run_many([item]))[0] for item in items]
        assert asyncio.run(tier.run_many([])) == []


def test_inputs_without_chunks_give_nothing():
    assert run(make("filter", "filter"), ask("?")) == [()]
    assert run(make("entity"), ask("?")) == [()]


def test_fingerprints_differ_with_what_changes_outputs_or_costs():
    dearer = EncoderTierSpec(kind="encoder", price=0.03)
    wider = EncoderTierSpec(kind="encoder", price=0.02, threshold=0.2)
    tiers = [
        make("filter", "filter"),
        make("filter", "filter", keep=4),
        *(make("entity", spec=spec) for spec in (SPEC, dearer, wider)),
        make("temporal"),
        make("entity", relations=("home",)),
        make("summary", "summary"),
    ]
    assert len({tier.fingerprint() for tier in tiers}) == len(tiers)
    assert make("entity").fingerprint() == tiers[2].fingerprint()


def test_an_encoder_that_has_to_be_fitted_is_refused():
    with pytest.raises(RLRouteError, match="'tfidf' is fitted on train texts"):
        make("entity", spec=EncoderTierSpec(kind="encoder", price=0.02, encoder=TfidfConfig()))
