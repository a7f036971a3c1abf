"""Conciseness: answers as long as they need to be."""

from __future__ import annotations

from eggroll.llm.tasks.base import Degenerate, Listed, Problem, divided, is_degenerate
from eggroll.llm.tasks.options import check_common

CHARACTERS = 5.0  # of a token, rounded up: English has some 4
# All written for this task; one question a line.
_TEXT = """
What is the capital of France? | Paris
What is the capital of Japan? | Tokyo
What is the capital of Italy? | Rome
What is the capital of Spain? | Madrid
What is the capital of Germany? | Berlin
What is the capital of Egypt? | Cairo
What is the capital of Russia? | Moscow
What is the capital of Greece? | Athens
What is the capital of Portugal? | Lisbon
What is the capital of Norway? | Oslo
What is the capital of Sweden? | Stockholm
What is the capital of Austria? | Vienna
What is the capital of Cuba? | Havana
What is the capital of Peru? | Lima
What is the capital of Canada? | Ottawa
What is the capital of Kenya? | Nairobi
What is the capital of Ireland? | Dublin
What is the capital of China? | Beijing
What colour is the sky on a clear day? | Blue
What colour is fresh snow? | White
What colour is a ripe banana? | Yellow
What colour is coal? | Black
What colour is healthy grass? | Green
What colour is blood? | Red
What colour do you get by mixing blue and yellow paint? | Green
What colour do you get by mixing red and white paint? | Pink
What colour is an emerald? | Green
What colour is a ruby? | Red
What is the opposite of hot? | Cold
What is the opposite of up? | Down
What is the opposite of big? | Small
What is the opposite of fast? | Slow
What is the opposite of day? | Night
What is the opposite of open? | Closed
What is the opposite of early? | Late
What is the opposite of rich? | Poor
What is the opposite of empty? | Full
What is the opposite of wet? | Dry
What is the opposite of left? | Right
What is the opposite of true? | False
What is the opposite of happy? | Sad
What is the opposite of heavy? | Light
What is 2 + 2? | 4
What is 3 + 6? | 9
What is 10 - 4? | 6
What is 5 times 5? | 25
What is 12 divided by 3? | 4
What is 7 + 8? | 15
What is 20 - 9? | 11
What is 6 times 7? | 42
What is half of 18? | 9
What is 100 - 1? | 99
What is double 21? | 42
What is the square root of 81? | 9
What is 2 to the power of 5? | 32
What number comes after 19? | 20
What number comes before 50? | 49
How many days are in a week? | 7
How many months are in a year? | 12
How many minutes are in an hour? | 60
How many seconds are in a minute? | 60
How many hours are in a day? | 24
How many legs does a spider have? | 8
How many legs does an insect have? | 6
How many legs does a dog have? | 4
How many wheels does a bicycle have? | 2
How many sides does a triangle have? | 3
How many sides does a hexagon have? | 6
How many corners does a square have? | 4
How many letters are in the English alphabet? | 26
How many continents are there on Earth? | 7
How many players does a football team have on the field? | 11
How many planets orbit the Sun? | 8
How many strings does a violin have? | 4
How many centimetres are in a metre? | 100
How many years are in a century? | 100
How many cards are in a standard deck without jokers? | 52
Which planet is closest to the Sun? | Mercury
Which planet is the largest in the Solar System? | Jupiter
Which planet is known for its bright rings? | Saturn
Which planet do we live on? | Earth
What star does the Earth orbit? | The Sun
What orbits the Earth and shines at night? | The Moon
What is the chemical symbol for gold? | Au
What is the chemical symbol for iron? | Fe
What is the chemical symbol for oxygen? | O
What is the chemical formula of water? | H2O
What gas do plants take in from the air? | Carbon dioxide
What gas do people need to breathe? | Oxygen
What is frozen water called? | Ice
At how many degrees Celsius does water freeze? | 0
At how many degrees Celsius does water boil at sea level? | 100
What is the largest ocean on Earth? | Pacific
What is the largest animal on Earth? | Blue whale
What is the tallest animal on Earth? | Giraffe
What is the fastest land animal? | Cheetah
What animal is known as man's best friend? | Dog
What animal says meow? | Cat
What animal gives us wool? | Sheep
What insect makes honey? | Bee
What do cows drink? | Water
What is a baby cat called? | Kitten
What is a baby dog called? | Puppy
What is a baby cow called? | Calf
What is a baby sheep called? | Lamb
What is the plural of mouse? | Mice
What is the plural of child? | Children
What is the plural of foot? | Feet
What is the past tense of go? | Went
What is the past tense of eat? | Ate
What is the past tense of see? | Saw
What is the first letter of the English alphabet? | A
What is the last letter of the English alphabet? | Z
What day comes after Monday? | Tuesday
What day comes before Sunday? | Saturday
What month comes after March? | April
What month is the first of the year? | January
What month is the last of the year? | December
What is the coldest season of the year? | Winter
In which direction does the Sun rise? | East
In which direction does the Sun set? | West
What language is spoken in Brazil? | Portuguese
What language is spoken in Mexico? | Spanish
What language did the ancient Romans speak? | Latin
What is the currency of Japan? | Yen
What is the currency of India? | Rupee
What is the currency of the United Kingdom? | Pound
Who wrote Hamlet? | Shakespeare
Who painted the Mona Lisa? | Leonardo da Vinci
Who developed the theory of general relativity? | Einstein
What instrument has black and white keys? | Piano
What do you use to tell the time? | A clock
What do you open a locked door with? | A key
What tool do you use to hit a nail? | Hammer
What meal do people eat in the morning? | Breakfast
What is the main ingredient of bread? | Flour
What fruit is cider made from? | Apples
What fruit is wine made from? | Grapes
What organ pumps blood through the body? | Heart
What organ do we think with? | Brain
What do we see with? | Eyes
What do we hear with? | Ears
Is the Earth flat? | No
Is ice colder than steam? | Yes
Is 17 a prime number? | Yes
Is 9 an even number? | No
Can fish breathe under water? | Yes
Can pigs fly? | No
Is a whale a mammal? | Yes
Is the Sun a planet? | No
Is Africa a continent? | Yes
Is a tomato a mineral? | No
"""

QUESTIONS: tuple[tuple[str, str], ...] = tuple(
    (question, answer) for question, answer in (line.split(" | ") for line in _TEXT.strip().splitlines())
)


class Conciseness(Listed):
    r"""Answer in as many characters as the reference answer has: `−|len(answer) − len(reference)|`, or `−5·max_tokens`.

    The least reward, `−5·max_tokens` (more characters than so many tokens mostly have), is that of an answer without a
    letter or digit, of one that repeats itself, of one that was cut off, and of one that is longer still. Without this
    rule of ours an empty answer to "What is the capital of France?" has −5, and "The capital of France is Paris." −26.
    The reward is else that of arXiv 2509.24372, and with `degenerate="scored"` that alone. The paper trains on 2
    questions and tests on 8; these are ours: more of them, each with a short answer that is right, one in five for
    tests. Length is all that is rewarded, as in the paper: a wrong answer of the right length has reward 0 too. Answers
    are measured in characters, without white space at either end.

    Args:
        system: the system message. Default None.
        max_tokens: tokens that an answer may have. Default 64; the paper allows 100.
        degenerate: what an answer gets that says nothing, as `Task.degenerate` has it. Default "worst"; "scored": the
            paper's reward, whose least value is unknown.

    Raises:
        ValueError: an option that is none of these.

    Example:
        >>> task = Conciseness()
        >>> problem = Problem("What is the capital of France?", "Paris")
        >>> task.reward(" Paris\n", problem), task.reward("It is Paris.", problem), task.reward("", problem)
        (0.0, -7.0, -320.0)
        >>> Conciseness(degenerate="scored").reward("", problem)
        -5.0

    References:
        Qiu et al., Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning, arXiv 2509.24372.
    """

    name = "conciseness"

    def __init__(self, *, system: str | None = None, max_tokens: int = 64, degenerate: Degenerate = "worst") -> None:
        check_common(system, max_tokens, degenerate)
        super().__init__(*divided([Problem(question, answer) for question, answer in QUESTIONS]))
        self.system, self.max_tokens, self.degenerate = system, max_tokens, degenerate
        self.worst = None if degenerate == "scored" else -CHARACTERS * max_tokens

    def reward(self, text: str, problem: Problem) -> float:
        """Minus the difference of the lengths in characters, or the least there is."""
        if self.worst is not None and is_degenerate(text):
            return self.worst
        reward = float(-abs(len(text.strip()) - len(problem.data)))
        return reward if self.worst is None else max(reward, self.worst)
