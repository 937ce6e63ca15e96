"""What the tiny base model is taught before any task: skills, each in a few wordings."""

from __future__ import annotations

from random import Random

from evoselect_pipeline.playground.compare import SEEN_COMPARE
from evoselect_pipeline.playground.compose import SEEN_COMPOSE, SINGLE_STEPS
from evoselect_pipeline.playground.kinds import Draft, Kind, words
from evoselect_pipeline.playground.lookup import SEEN_LOOKUP
from evoselect_pipeline.playground.stories import SEEN_STORIES
from evoselect_pipeline.playground.words import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    COLORS,
    DAYS,
    FOODS,
    JOBS,
    LINKS,
    NAMES,
    NOUNS,
    SHORT_WORDS,
    VERBS,
)

GROUPS = {
    "an animal": ANIMALS,
    "a city": CITIES,
    "a color": COLORS,
    "a job": JOBS,
    "a food": FOODS,
    "a day": DAYS,
    "a name": NAMES,
}


def _pick(rng: Random, *texts: str) -> str:
    return rng.choice(texts)


def add(rng: Random) -> Draft:
    """Add two numbers."""
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    text = _pick(rng, f"{a} + {b} =", f"What is {a} plus {b}?", f"Add {a} and {b}.")
    return Draft(text, str(a + b))


def subtract(rng: Random) -> Draft:
    """Subtract the smaller of two numbers."""
    b, a = sorted((rng.randint(0, 20), rng.randint(0, 20)))
    text = _pick(rng, f"{a} - {b} =", f"What is {a} minus {b}?", f"Take {b} from {a}.")
    return Draft(text, str(a - b))


def count(rng: Random) -> Draft:
    """Count the words of a list."""
    items = words(rng, SHORT_WORDS, 1, 6)
    return Draft(f"How many words: {', '.join(items)}", str(len(items)))


def spell(rng: Random) -> Draft:
    """Spell a word, forwards or backwards."""
    word = rng.choice(SHORT_WORDS)
    if rng.random() < 0.5:
        return Draft(f"Spell {word}.", " ".join(word))
    return Draft(f"Spell {word} backwards.", " ".join(reversed(word)))


def choose(rng: Random) -> Draft:
    """Answer a question with lettered options."""
    num_options = rng.randint(2, 6)
    if rng.random() < 0.5:
        group = rng.choice(list(GROUPS))
        right = rng.choice(GROUPS[group])
        wrong = [w for name, pool in GROUPS.items() if name != group for w in pool]
        options = [right, *rng.sample(wrong, num_options - 1)]
        question = _pick(rng, f"Which of these is {group}?", f"Select {group} from the options.")
    else:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        right = str(a + b)
        others = [n for n in range(41) if n != a + b]
        options = [right, *map(str, rng.sample(others, num_options - 1))]
        question = f"What is {a} plus {b}?"
    rng.shuffle(options)
    listed = "\n".join(f"({letter}) {o}" for letter, o in zip("ABCDEF", options, strict=False))
    return Draft(f"{question}\nOptions:\n{listed}", f"({'ABCDEF'[options.index(right)]})")


def sentence(rng: Random) -> str:
    """Make a sentence out of common English words; grammar is roughly right, meaning is not."""
    subject = _pick(rng, f"The {rng.choice(NOUNS)}", rng.choice(NAMES))
    middle = f"{rng.choice(VERBS)} a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    end = f" {rng.choice(LINKS)} the {rng.choice(NOUNS)}" if rng.random() < 0.6 else ""
    return f"{subject} {middle}{end}."


def repeat(rng: Random) -> Draft:
    """Say a line of words again."""
    line = " ".join(words(rng, SHORT_WORDS + NAMES, 3, 8))
    return Draft(f"Repeat: {line}", line)


def recall(rng: Random) -> Draft:
    """Say what each of a few people has, in another order: matching, several times in a row."""
    people = words(rng, NAMES, 2, 4)
    pets = dict(zip(people, rng.sample(ANIMALS, len(people)), strict=True))
    facts = " ".join(f"{name} has a {pet}." for name, pet in pets.items())
    asked = rng.sample(people, len(people))
    return Draft(f"{facts} {', '.join(asked)}?", ", ".join(pets[name] for name in asked))


def next_word(rng: Random) -> Draft:
    """Find the word that follows another in a sentence."""
    tokens = sentence(rng)[:-1].split()
    unique = [i for i in range(len(tokens) - 1) if tokens.count(tokens[i]) == 1]
    place = rng.choice(unique)
    text = f"{' '.join(tokens)}. Which word follows {tokens[place]}?"
    return Draft(text, tokens[place + 1])


def long_text(rng: Random) -> Draft:
    """Find one person's trait in a long text: keeps far-away positions in use."""
    people = rng.sample(NAMES, 3)
    pets = rng.sample(ANIMALS, 3)
    lines = [sentence(rng) for _ in range(rng.randint(10, 25))]
    facts = [f"{name} has a {pet}." for name, pet in zip(people, pets, strict=True)]
    for fact in facts:
        lines.insert(rng.randrange(len(lines)), fact)
    asked = rng.randrange(3)
    question = f"What pet does {people[asked]} have?"
    return Draft(" ".join([*lines, question]), pets[asked])


# (share of the pretraining rows, kinds that split it evenly)
CURRICULUM: tuple[tuple[float, tuple[Kind, ...]], ...] = (
    (0.08, (Kind("add", add),)),
    (0.08, (Kind("subtract", subtract),)),
    (0.11, SEEN_COMPARE),
    (0.03, (Kind("count", count), Kind("spell", spell))),
    (0.04, (Kind("choose", choose),)),
    (0.07, (Kind("repeat", repeat), Kind("next_word", next_word))),
    (0.07, (Kind("recall", recall),)),
    (0.18, SEEN_STORIES),
    (0.08, SINGLE_STEPS),
    (0.13, SEEN_COMPOSE),
    (0.13, SEEN_LOOKUP),
)
SKILLS = tuple(kind for _, kinds in CURRICULUM for kind in kinds)
LONG_TEXT = Kind("long_text", long_text)


def draw_skill(rng: Random) -> tuple[Kind, Draft]:
    """Draw one pretraining row by the curriculum's shares."""
    shares = [share for share, _ in CURRICULUM]
    kinds = rng.choices(CURRICULUM, weights=shares)[0][1]
    kind = rng.choice(kinds)
    return kind, kind.draw(rng)
