"""Finding a value in a small record: layouts the base model has seen, and the task's new ones."""

from __future__ import annotations

from functools import partial
from random import Random

from evoselect_pipeline.playground.kinds import Draft, Kind
from evoselect_pipeline.playground.words import ANIMALS, CITIES, COLORS, DAYS, FOODS, JOBS, NAMES

# Every field of a record, and what may stand in it.
FIELDS = {
    "name": NAMES,
    "city": CITIES,
    "pet": ANIMALS,
    "color": COLORS,
    "job": JOBS,
    "food": FOODS,
    "day": DAYS,
    "age": tuple(str(age) for age in range(11, 90)),
}

# (field asked for, text). Upper-case fields belong to a second person.
SEEN_TEXTS = (
    ("city", "{name} lives in {city} and likes {food}. Where does {name} live?"),
    ("food", "{name} lives in {city} and likes {food}. What does {name} like?"),
    ("pet", "{name} is a {job} and has a {pet}. What pet does {name} have?"),
    ("job", "{name} is a {job} and has a {pet}. What is the job of {name}?"),
    ("day", "On {day}, {name} went to {city}. When did {name} go?"),
    ("city", "On {day}, {name} went to {city}. Where did {name} go?"),
    ("food", "The {color} {pet} of {name} eats {food}. What does it eat?"),
    ("color", "The {color} {pet} of {name} eats {food}. What color is it?"),
    ("PET", "{name} has a {pet}. {NAME} has a {PET}. What pet does {NAME} have?"),
    ("pet", "{name} has a {pet}. {NAME} has a {PET}. What pet does {name} have?"),
    ("name", "{name} has a {pet}. {NAME} has a {PET}. Who has the {pet}?"),
    ("NAME", "{name} has a {pet}. {NAME} has a {PET}. Who has the {PET}?"),
    ("age", "{name} is {age} years old. {NAME} is {AGE} years old. How old is {name}?"),
    ("AGE", "{name} is {age} years old. {NAME} is {AGE} years old. How old is {NAME}?"),
    ("color", "The {pet} is {color}. The {PET} is {COLOR}. What color is the {pet}?"),
    ("COLOR", "The {pet} is {color}. The {PET} is {COLOR}. What color is the {PET}?"),
)
NEW_TEXTS = (
    ("city", "home", "Meet {name}, a {job} from {city}. Home town?"),
    ("job", "work", "Meet {name}, a {job} from {city}. How does {name} earn money?"),
    ("day", "meeting", "{name} sees {NAME} on {day} in {city} for {food}. On which day?"),
    ("city", "name_it", "{name} lives in {city} and likes {food}. Name the city."),
    ("pet", "animal", "{name} is a {job} and has a {pet}. Name the animal."),
    ("city", "came", "From {city} came {name}, a {job}. Where does {name} live?"),
    ("day", "eats", "On {day}, {name} eats {food} in {city}. Which day is it?"),
    ("food", "eats_what", "On {day}, {name} eats {food} in {city}. What does {name} eat?"),
    ("job", "with_pet", "With a {color} {pet} came {name}, the {job}. What is the job of {name}?"),
    ("color", "painted", "{name} the {job} painted the wall of the {pet} {color}. What color?"),
    ("city", "letter", "A letter from {name} in {city}, sent on {day}: more {food}! From where?"),
    ("pet", "zoo", "The zoo of {city} bought a {color} {pet} on {day}. What did it buy?"),
)


def draw_people(rng: Random) -> dict[str, str]:
    """Draw two people who differ in every field."""
    values = {}
    for field, pool in FIELDS.items():
        values[field], values[field.upper()] = rng.sample(pool, 2)
    return values


def draw_text(field: str, text: str, rng: Random) -> Draft:
    """Fill a text about two people; its slips are the other values it mentions."""
    people = draw_people(rng)
    mentioned = [people[key] for key in people if f"{{{key}}}" in text]
    answer = people[field]
    return Draft(text.format(**people), answer, tuple(v for v in mentioned if v != answer))


def draw_record(rng: Random) -> Draft:
    """Draw a `key: value` record and ask for one of its fields."""
    people = draw_people(rng)
    keys = rng.sample(list(FIELDS), rng.randint(2, 5))
    field = rng.choice(keys)
    joint, end = rng.choice(((": ", "; "), (" = ", ", "), (": ", "\n")))
    record = end.join(f"{key}{joint}{people[key]}" for key in keys)
    question = rng.choice(("What is the {}?", "Give the {}.", "Find {}."))
    return Draft(f"{record}\n{question.format(field)}", people[field])


SEEN_LOOKUP = (
    Kind("record", draw_record),
    *(
        Kind(f"seen_text_{number}", partial(draw_text, field, text))
        for number, (field, text) in enumerate(SEEN_TEXTS)
    ),
)
NEW_LOOKUP = tuple(Kind(name, partial(draw_text, field, text)) for field, name, text in NEW_TEXTS)
