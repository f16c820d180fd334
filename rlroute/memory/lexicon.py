"""What people say of themselves in long conversations: the relations that notes are written with.

Each relation has the phrase that stands in a note (`SUBJECT - PHRASE - OBJECT`) and a few ways of
saying it in the first person. Rules look for the first of these ways; an encoder compares sentences
with all of them. The generated world draws its facts from the same relations, and says them in
these ways and in others, which are listed nowhere here.

What it leaves out: matching (`rlroute.memory.rules`, `rlroute.memory.encoder_tiers`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """A relation; `{}` stands for the object. `single` says that a person has one at a time."""

    name: str
    phrase: str
    ways: tuple[str, ...]
    single: bool = True


RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        Relation("home", "lives in", ("I live in {}", "my home is in {}", "I moved to {}")),
        Relation("job", "works as", ("I work as {}", "I am employed as {}", "I started as {}")),
        Relation("employer", "works for", ("I work for {}", "my company is {}", "I joined {}")),
        Relation("pet", "has a pet called", ("my pet is called {}", "I adopted {}, my pet")),
        Relation("car", "drives", ("I drive {}", "my car is {}", "I bought {} to drive")),
        Relation("partner", "is together with", ("my partner is {}", "I married {}")),
        Relation("instrument", "plays", ("I play {}", "I practise {}", "I learn {}"), single=False),
        Relation("food", "likes to eat", ("my favourite food is {}", "I love eating {}")),
        Relation("place", "visited", ("I visited {}", "I travelled to {}"), single=False),
        Relation("event", "attended", ("I attended {}", "I went to {}"), single=False),
        Relation("purchase", "bought", ("I bought {}", "I paid for {}"), single=False),
    )
}
