"""Texts for prompts: the same for the same seed, and of about as many tokens as are asked for."""

import random

from client import ask

WORDS = (
    "the old man and sea was a little boy who had to go home because it rained when they found small red boat near "
    "river under trees while her mother told them stories of kings ships gold winter summer bread dogs birds friends "
    "houses morning night water stone garden mountain letter window song road horse village market school"
).split()


class Texts:
    """Writes texts for a model, of which it knows how many words make so many tokens."""

    def __init__(self, words_per_token):
        self.words_per_token = words_per_token

    @classmethod
    async def of(cls, port):
        sample = words(random.Random(0), 400)
        tokens = (await ask(port, "/tokenize", {"content": sample})).json()["tokens"]
        return cls(400 / len(tokens))

    def text(self, seed, n_tokens):
        """Returns a text of about `n_tokens` tokens."""
        return words(random.Random(seed), max(1, round(n_tokens * self.words_per_token)))


def words(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n))
