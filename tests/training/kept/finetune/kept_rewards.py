"""A reward for the kept runs."""


def letters(text, problem):
    """The share of plain letters in an answer."""
    assert problem.data["topic"] in problem.prompt
    return sum("a" <= c.lower() <= "z" for c in text) / max(len(text), 1)
