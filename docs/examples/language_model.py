"""A language model and a reward of one's own: a tiny random decoder learns to write vowels, scored in processes."""

import jax
import optax
from flax import nnx

import eggroll
from eggroll.llm import Decoder, DecoderConfig, Decoding, Problem, Scorers, generate, generate_plain, generator, split
from eggroll.llm.answers.prompts import pad_left

LETTERS = "abcdefghijklmnopqrstuvwxyz "  # one token each; a model folder of eggroll.llm.load has a tokenizer


def texts(answers) -> list[str]:
    tokens = answers.tokens.reshape(-1, answers.tokens.shape[-1]).tolist()
    return ["".join(LETTERS[token] for token in row) for row in tokens]


def vowels(text: str, problem: Problem) -> float:
    """A reward is Python: it sees the answer as text, and what belongs to the prompt in `problem.data`."""
    return sum(letter in "aeiou" for letter in text) / problem.data["length"]


sizes = {"vocabulary": len(LETTERS), "width": 32, "hidden": 64, "layers": 2, "heads": 4, "key_value_heads": 2}
graphdef, params = split(Decoder(DecoderConfig(**sizes, head_width=8), rngs=nnx.Rngs(0)))
write = generator(graphdef, Decoding(max_tokens=8))
asked = ["say it", "once more"]
prompts = pad_left([[LETTERS.index(letter) for letter in prompt] for prompt in asked])
problems = [Problem(prompt, {"length": 8}) for prompt in asked]

es = eggroll.ES(population=64, sigma=0.05, optimizer=optax.adam(0.02))
state = es.init(params, jax.random.key(0))
with Scorers(vowels, workers=2, worst=0.0) as scorers:
    before = scorers.score(texts(generate_plain(params, write, prompts)), problems).values.mean()
    for _ in range(25):
        members = es.ask(state)
        answers = generate(members, write, prompts)  # tokens [population, prompts, 8]
        rewards = scorers.score(texts(answers), problems * es.population).values
        state, metrics = es.tell(state, members, rewards.reshape(es.population, -1).mean(-1))
    after = scorers.score(texts(generate_plain(state.params, write, prompts)), problems).values.mean()
print(f"mean reward {before:.2f} -> {after:.2f}")
