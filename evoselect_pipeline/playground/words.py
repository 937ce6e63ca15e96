"""Word lists that the playground's sentences are drawn from."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Ann Ben Dan Eva Finn Gina Hugo Ida Jack Kim Leo Mia Ned Olga Paul Rosa Sam Tina Uma Vera
    Will Yara Zoe Tom
    """
)
THINGS = _words(
    """
    figs nuts pens cups hats keys books coins cards balls stamps shells apples pears boxes bags
    eggs maps toys plates
    """
)
CITIES = _words(
    """
    Rome Paris Oslo Lima Cairo Delhi Tokyo Bonn Kyiv Quito Dublin Lyon
    """
)
ANIMALS = _words(
    """
    dog cat cow pig hen fox owl bat bee ant goat frog duck wolf bear crab
    """
)
COLORS = _words(
    """
    red blue green black white gray pink brown gold orange
    """
)
JOBS = _words(
    """
    cook nurse pilot baker farmer lawyer singer driver doctor tailor guard clerk
    """
)
FOODS = _words(
    """
    rice soup bread cheese beans salad pasta fish cake corn meat honey
    """
)
DAYS = _words(
    """
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
    """
)
SHORT_WORDS = _words(
    """
    sun hat map cup pen box tree rock bird lamp desk door book ship road hill lake wind rain
    snow fire gold iron salt milk corn cake tea jam nut bed rug jar pot key net rope bell drum
    flag coat boot ring star moon leaf seed root sand wall gate farm town park nest boat kite
    ball doll dog cat cow pig hen fox owl bat bee ant goat frog duck wolf bear crab
    """
)
NOUNS = _words(
    """
    time year people way day man woman child world life hand part place week case point number
    group problem fact company system program question work government night home water room
    mother area money story month right study book eye job word business issue side kind head
    house service friend father power hour game line end member law car city community team
    minute idea body information back parent level office door health person art war history
    party result change morning reason research girl boy moment air teacher force education
    sentence patient movie sequence object direction step option player table date step position
    answer color letter path bird driver writer customer manager paper garden river street
    """
)
VERBS = _words(
    """
    is has makes takes sees finds gives tells asks leaves calls keeps brings writes reads sits
    stands loses pays meets runs moves likes believes holds starts shows hears plays turns opens
    follows stops creates speaks allows adds spends grows walks wins offers remembers considers
    buys waits serves sends builds falls cuts reaches explains contains describes includes
    """
)
ADJECTIVES = _words(
    """
    good new first last long great little own other old right big high different small large
    next early young important few public bad same able true false best better free special
    whole clear recent certain strong possible late general full simple left easy real open
    """
)
LINKS = _words(
    """
    in on at by for with from about after before under between through during without because
    and but or if when while that which who then there not
    """
)
GREETINGS = _words(
    """
    Hi Hello Hey Please Okay So Well Now Right Alright Also Next Quick Quickly Again Listen Look
    Tell Try Think Dear Sir Friend Kindly Thanks Greetings Today Question Task Puzzle
    """
)
