"""What people of the generated world say: facts in other words, things that only look like facts.

For each relation of the lexicon: ways of saying a fact that the lexicon does not list (`told`),
sentences that seem to say one and do not (`seeming`: of other people, wished for, denied), and
small talk on the same subject, which makes a search for the subject hard. `openings` bring a
subject up.

What it leaves out: questions (`rlroute.memory.world_questions`), who says what, and when
(`rlroute.memory.world`). Rules and encoders must not read this module: it is what they are tested
on.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sayings:
    """What is said about one relation; `{}` stands for the object."""

    objects: tuple[str, ...]
    told: tuple[str, ...]
    seeming: tuple[str, ...]
    talk: tuple[str, ...]
    openings: tuple[str, ...]


PEOPLE = (
    *("Anna", "Boris", "Carla", "David", "Elena", "Farid", "Greta", "Hanno", "Irina", "Jonas"),
    *("Katya", "Lukas", "Marta", "Nadia", "Oscar", "Paula", "Quinn", "Rosa", "Stefan", "Tamar"),
    *("Ulrich", "Vera", "Walter", "Xenia", "Yusuf", "Zora"),
)

SAYINGS: dict[str, Sayings] = {
    "home": Sayings(
        (
            *("Lisbon", "Graz", "Utrecht", "Bergen", "Leeds", "Porto", "Ghent", "Malmo", "Turin"),
            *("Lyon", "Krakow", "Split", "Tampere", "Cork", "Basel", "Bilbao", "Leipzig", "Brno"),
        ),
        (
            "the last boxes are unpacked and the neighbours in {} brought bread and salt",
            "send the letters to {}, this is where my front door is",
            "I got the keys to a flat in {} and sleep there every night",
        ),
        (
            "my cousin lives in {}",
            "I would love to live in {} one day",
            "I never lived in {}, whatever they say",
            "a friend asked whether my home is in {}, and I laughed",
        ),
        (
            "rents are going up everywhere, it is a worry",
            "a place with a balcony makes such a difference in summer",
            "moving boxes are the worst thing about a new address",
            "the walls here are so thin that I hear the neighbours talk",
            "where you live matters less than who lives next door",
        ),
        (
            "let us talk about towns: where does everybody live these days",
            "is your home still in the same town",
            "how do you like the town that you live in",
        ),
    ),
    "job": Sayings(
        (
            *("a nurse", "a baker", "a welder", "a teacher", "a plumber", "a librarian", "a pilot"),
            *("a surveyor", "a florist", "a carpenter", "a translator", "a chemist", "a tailor"),
            *("a gardener", "a paramedic", "a cook", "an optician", "an electrician"),
        ),
        (
            "the badge on my jacket says {}, and the pay is decent",
            "they gave me a contract, so from now on I earn my living by being {}",
            "ask me what I do all day and the answer is: what {} does",
        ),
        (
            "my brother works as {}",
            "I would rather not work as {}, the hours are awful",
            "as a child I wanted to work as {}",
            "somebody took me for {} yesterday, how odd",
        ),
        (
            "Mondays at work are always slow",
            "a good boss is worth more than a good salary",
            "my working hours are long at this time of the year",
            "everybody at work is talking about the holidays",
            "I read that people change their profession four times in a life",
        ),
        (
            "what does everybody work as these days",
            "let us talk about jobs: what is yours now",
            "which profession do you have, still the same job",
        ),
    ),
    "employer": Sayings(
        (
            *(
                "Norvik",
                "Tallow Brothers",
                "Ostrava Mills",
                "Bluefin",
                "Harrow and Pine",
                "Quantia",
            ),
            *("Redstone", "Selvadur", "Marlow House", "Pinecrest", "Volta Works", "Kestrel"),
            *("Ambergate", "Fennimore", "Larkspur", "Zenith Yard"),
        ),
        (
            "the name on my pay slip is {}",
            "{} has put me on the payroll",
            "my desk stands in the new building of {}, third floor",
        ),
        (
            "my sister works for {}",
            "{} sent me an offer and I said no",
            "I would never work for {}",
            "I heard that {} is my neighbour's company",
        ),
        (
            "big companies all have the same coffee",
            "the firm down the road is hiring again",
            "our office party was rather quiet",
            "a company is only as good as its people",
            "the canteen at the office has a new cook",
        ),
        (
            "which company does everybody work for by now",
            "who employs you now, still the same employer and company",
            "let us talk about employers: which company do you work for",
        ),
    ),
    "pet": Sayings(
        (
            *("Biscuit", "Mango", "Pepper", "Whisky", "Tofu", "Pixel", "Sooty", "Maple", "Ziggy"),
            *("Nutmeg", "Bandit", "Clover", "Rocket", "Pickle", "Waffle", "Domino"),
        ),
        (
            "{} chewed my slippers again, what a rascal to share a flat with",
            "a small furry thing by the name of {} sleeps on my bed now",
            "I brought {} home from the shelter and it already rules the house",
        ),
        (
            "the pet of my neighbour is called {}",
            "if I had a pet I would call it {}",
            "I do not have a pet called {}, that was a joke",
            "I looked after {} for a friend, who has it back now",
        ),
        (
            "animals make a home warmer",
            "the vet is expensive these days",
            "pets are not allowed in many flats",
            "a dog needs three walks a day, rain or shine",
            "cats do what they like",
        ),
        (
            "how are the pets, and what are they called again",
            "tell me about your pet, I forgot the name",
            "let us talk about pets and their names",
        ),
    ),
    "car": Sayings(
        (
            *("a Volvo", "a Fiat", "a Skoda", "a Toyota", "a Renault", "a Mazda", "a Honda"),
            *("a Peugeot", "a Subaru", "a Kia", "a Lada", "a Saab", "a Citroen", "a Suzuki"),
        ),
        (
            "the thing in my garage is {}, and it takes me everywhere",
            "I filled up the tank, and {} drinks less petrol than I feared",
            "the dealer handed me the papers of {}",
        ),
        (
            "my uncle drives {}",
            "I would like to drive {} when I am rich",
            "I never drive {}, too loud for me",
            "I hired {} for an afternoon and gave it back",
        ),
        (
            "traffic was terrible this morning",
            "petrol has become so dear",
            "parking in the centre is a nightmare",
            "driving at night makes me tired",
            "electric cars are everywhere now",
        ),
        (
            "which car does everybody drive these days",
            "how is your car, what do you drive now",
            "let us talk about cars, what kind is yours",
        ),
    ),
    "partner": Sayings(
        (
            *("Alistair", "Bettina", "Cosima", "Dario", "Edwin", "Fiona", "Gustav", "Helena"),
            *("Imogen", "Jasper", "Kirsten", "Leopold", "Miriam", "Nestor", "Ophelia", "Philippa"),
        ),
        (
            "{} and I are a couple, and my mother is delighted",
            "{} put a ring on my finger",
            "I share my life with {}, and breakfast too",
        ),
        (
            "my cousin married {}",
            "people think that {} is my partner, but we are just friends",
            "I could never be together with {}",
            "my flatmate has fallen in love with {}",
        ),
        (
            "weddings are so expensive",
            "love needs patience, my grandmother used to say",
            "a partner who cooks is a treasure",
            "long evenings for two are the best part of winter",
            "couples should travel together before they marry",
        ),
        (
            "who is together with whom by now",
            "how is your partner, are you still together",
            "let us talk about couples: who is your partner",
        ),
    ),
    "instrument": Sayings(
        (
            *("the cello", "the flute", "the harp", "the oboe", "the banjo", "the violin"),
            *("the trumpet", "the piano", "the clarinet", "the accordion", "the guitar"),
            *("the drums", "the mandolin", "the saxophone", "the tuba", "the zither"),
        ),
        (
            "my neighbours hear me with {} through the wall",
            "my fingers are sore, {} has strings or keys enough for an hour every night",
            "the band asked me to bring {} on Thursday, I have got quite good at it",
        ),
        (
            "my niece plays {}",
            "I would like to play {}, but I have no time",
            "I cannot play {} at all",
            "my father tried to sell {} to a pupil of his",
        ),
        (
            "music makes the evenings shorter",
            "the choir sang rather well on Sunday",
            "practice makes perfect, says my teacher",
            "a concert hall is being built in the old harbour",
            "I cannot read notes before my first coffee",
        ),
        (
            "which instruments does everybody play these days",
            "how is the music, which instruments do you play",
            "let us talk about the instruments that we play",
        ),
    ),
    "food": Sayings(
        (
            *("mushroom risotto", "lentil soup", "fish curry", "apple strudel", "bean stew"),
            *("potato salad", "rice pudding", "spinach pie", "onion tart", "plum cake"),
            *("noodle soup", "goat cheese", "pea dumplings", "baked aubergine"),
        ),
        (
            "nothing on a plate makes me as happy as {}",
            "cook {} and I will come running",
            "for my birthday I want {}, as always the best dish there is",
        ),
        (
            "my aunt loves eating {}",
            "I used to hate {}",
            "I cannot stand {}",
            "they served {} at the office and nobody touched it",
        ),
        (
            "the market had lovely vegetables today",
            "cooking for one is boring",
            "I burnt the dinner again",
            "a good meal needs good company",
            "restaurants are full at this time of the year",
        ),
        (
            "what does everybody like to eat best, which food",
            "what is your favourite food these days",
            "let us talk about the food that we love to eat",
        ),
    ),
    "place": Sayings(
        (
            *("Rome", "Oslo", "Cairo", "Kyoto", "Athens", "Dublin", "Prague", "Tunis", "Lima"),
            *("Seville", "Vienna", "Riga", "Naples", "Venice", "Madrid", "Havana", "Tbilisi"),
            *("Marrakesh", "Reykjavik", "Ljubljana"),
        ),
        (
            "I had my suitcase with me in {}, what a place to walk around",
            "my photos from {} turned out well, the trip was short",
            "I took the night train and woke up in {}",
        ),
        (
            "my parents visited {}",
            "I would love to visit {} some day",
            "I have never been to {}",
            "I cancelled my trip to {}",
        ),
        (
            "trains are late whenever I want to travel",
            "travelling light is an art",
            "I need a holiday by the sea",
            "airports are not for people who hate queues",
            "maps on paper are the best souvenir of a trip",
        ),
        (
            "which places did everybody visit lately",
            "where have you been, any places that you visited",
            "let us talk about travelling and the places we visit",
        ),
    ),
    "event": Sayings(
        (
            *("the Harvest Fair", "the Lantern Parade", "the Jazz Week", "the Chess Open"),
            *("the River Run", "the Book Market", "the Film Marathon", "the Kite Festival"),
            *("the Poetry Slam", "the Science Night", "the Flower Show", "the Boat Race"),
            *("the Winter Ball", "the Garden Party", "the Robot Contest", "the Cheese Fair"),
        ),
        (
            "they stamped my ticket for {}, and I stayed until the end",
            "you could have seen me in the crowd of {}",
            "I stood in line for {} and it was worth the wait",
        ),
        (
            "my nephew attended {}",
            "I missed {}, sadly",
            "I would like to see {} next year",
            "the poster of {} fell off our door",
        ),
        (
            "crowds make me nervous",
            "there is always something going on in town",
            "tickets sell out within minutes nowadays",
            "festivals are better without rain",
            "I like events that end before midnight",
        ),
        (
            "which events did everybody attend lately",
            "have you been at any event, what did you attend",
            "let us talk about the events that we attend",
        ),
    ),
    "purchase": Sayings(
        (
            *("a red kettle", "a walnut desk", "a wool coat", "a brass lamp", "a silk scarf"),
            *("a garden bench", "a leather bag", "a steel watch", "a camping tent"),
            *("a rocking chair", "a copper pan", "a coffee grinder", "a folding bike"),
            *("a linen shirt", "a desk fan", "a record player"),
        ),
        (
            "the receipt for {} is in my wallet, it is mine at last",
            "I came out of the shop with {} under my arm",
            "my card was charged for {}, and I regret nothing",
        ),
        (
            "my mother bought {}",
            "I nearly bought {}, but it was too dear",
            "I gave {} back to the shop where my sister had bought it",
            "I dream of {}, but there is no room for it",
        ),
        (
            "shops are so full before a holiday",
            "everything costs twice as much as last year",
            "I keep all my receipts in a shoe box",
            "second-hand things have more charm",
            "I should spend less, really",
        ),
        (
            "which things did everybody buy lately",
            "what have you bought, any new things",
            "let us talk about the things that we buy and pay for",
        ),
    ),
}

DATED = ("place", "event", "purchase")  # relations whose facts have a date of their own

OPENERS = ("By the way,", "Guess what:", "You know,", "Listen:", "Oh,", "Well,", "So,")

TAILS = (
    "It makes me happy.",
    "What do you think of that?",
    "I wanted to tell you earlier.",
    "My mother could not believe it.",
    "More about that another time.",
    "Anyway, how are you?",
)

GENERAL_TALK = (
    "the rain has not stopped since the morning",
    "I slept badly, the moon was too bright",
    "we should meet for a walk soon",
    "time flies, it is hard to believe",
    "my phone needs charging all the time",
    "thanks for asking, I am fine",
)
