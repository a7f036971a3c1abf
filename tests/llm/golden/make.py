"""Writes what the tests compare with: tiny checkpoints, their logits and greedy answers, by transformers in PyTorch.

Run by hand, from the repository's root, in an environment of its own (`pip install torch==2.13.0`, then
`pip install transformers`; eggroll need not be there):

    python -m tests.llm.golden.make                   # writes tests/llm/golden/<family>/
    python -m tests.llm.golden.make --decoders        # writes tests/llm/golden/decoders.npz, or some cases of it
    python -m tests.llm.golden.make --real FOLDER     # writes tests/llm/golden/smollm2.json from converted weights
    python -m tests.llm.golden.make --check FOLDER    # FOLDER/<family>, saved by eggroll, give the same logits here
    python -m tests.llm.golden.make --check-decoders FOLDER  # FOLDER/<case>, saved by eggroll, do, too
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from tests.llm.decoders import ANSWER as DECODED
from tests.llm.decoders import CASES, draw, prompts
from tests.llm.families import SETTINGS, VOCABULARY

HERE = Path(__file__).parent
DECODERS = HERE / "decoders.npz"
TIME, ANSWER, STARTS = 9, 12, (0, 3, 6)  # columns of a prompt, tokens of an answer, pad columns of each row
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 7 plus 5? Answer with the number only.",
    "Name three colours.",
)


def make(family: str) -> None:
    """A checkpoint with random weights, none of which is small enough to be overlooked, and its golden values."""
    torch.manual_seed(sum(map(ord, family)))
    config = transformers.AutoConfig.for_model(**SETTINGS[family])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            inputs = 1.0 if weight.ndim == 1 or "embed" in name else weight.shape[1]
            centre = 1.0 if "norm" in name and "gemma" not in config.model_type else 0.0
            spread = 0.3 if weight.ndim == 1 or "embed" in name else 1.5 * inputs**-0.5
            weight.copy_(centre + spread * torch.randn(weight.shape))
    folder = HERE / family
    model.save_pretrained(folder)
    # The settings in the style of transformers 4, as most checkpoints have them.
    (folder / "config.json").write_text(json.dumps(SETTINGS[family], indent=1) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(golden(model), folder / "golden.safetensors")


def golden(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Prompts, padded on the left, with the logits of every column and the likeliest answers."""
    tokens = torch.randint(4, VOCABULARY, (len(STARTS), TIME), generator=torch.Generator().manual_seed(0))
    start = torch.tensor(STARTS)
    mask = (torch.arange(TIME) >= start[:, None]).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits
        options = {"do_sample": False, "max_new_tokens": ANSWER, "min_new_tokens": ANSWER, "pad_token_id": 0}
        answer = model.generate(input_ids=tokens, attention_mask=mask, eos_token_id=None, **options)[:, TIME:]
    return {
        "tokens": tokens.int(),
        "start": start.int(),
        "logits": logits.contiguous(),
        "answer": answer.int().contiguous(),
    }


def make_decoders(names: list[str]) -> None:
    """Names and shapes of checkpoints' tensors, logits and answers of every case, in one file: weights have none."""
    kept = dict(np.load(DECODERS)) if DECODERS.exists() else {}
    for case in names or CASES:
        with tempfile.TemporaryDirectory() as place:
            tensors = untrained(case, Path(place))
            found = of_decoder(Path(place))
        made = {"tensors": json.dumps({name: list(tensor.shape) for name, tensor in tensors.items()}), **found}
        kept |= {f"{case}/{name}": np.asarray(value) for name, value in made.items()}
        print(case, {name: float(np.std(value)) for name, value in found.items()})
    np.savez_compressed(DECODERS, **{name: kept[name] for name in sorted(kept)})


def untrained(case: str, folder: Path) -> dict[str, np.ndarray]:
    """A checkpoint of a case as transformers writes it, with the weights that are drawn from their names."""
    settings = CASES[case]
    config = transformers.AutoConfig.for_model(**settings)
    kind = transformers.AutoModelForImageTextToText if "text_config" in settings else transformers.AutoModelForCausalLM
    kind.from_config(config).float().save_pretrained(folder)
    shapes = {name: tensor.shape for name, tensor in load_arrays(folder / "model.safetensors").items()}
    tensors = {name: draw(settings["model_type"], name, shape) for name, shape in shapes.items()}
    save_arrays(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def of_decoder(folder: Path) -> dict[str, np.ndarray]:
    """Logits of every column, and the likeliest answers, each of a model of its own: rotary positions may remember."""
    tokens, start = (torch.tensor(one) for one in prompts())
    tokens, mask = tokens.long(), (torch.arange(tokens.shape[1]) >= start[:, None]).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    wrapped = "text_config" in json.loads((folder / "config.json").read_text())
    kind = transformers.AutoModelForImageTextToText if wrapped else transformers.AutoModelForCausalLM

    def loaded() -> transformers.PreTrainedModel:
        model, said = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
        assert not any(said.values()), said
        return model.eval()

    options = {"do_sample": False, "max_new_tokens": DECODED, "min_new_tokens": DECODED, "pad_token_id": 0}
    with torch.no_grad():
        logits = loaded()(input_ids=tokens, attention_mask=mask, position_ids=positions).logits
        answer = loaded().generate(input_ids=tokens, attention_mask=mask, eos_token_id=None, **options)
    return {"logits": logits.numpy(), "answer": answer[:, tokens.shape[1] :].int().numpy()}


def check_decoders(folder: Path) -> None:
    """Raises unless folders of the cases saved by eggroll load without complaint and give the golden values."""
    wanted = np.load(DECODERS)
    for case in CASES:
        found = of_decoder(folder / case)
        assert np.array_equal(found["answer"], wanted[f"{case}/answer"]), case
        assert np.array_equal(found["logits"], wanted[f"{case}/logits"]), case
        print(f"{case}: equal to the bit")


def check(folder: Path) -> None:
    """Raises unless a folder saved by eggroll loads without complaint and gives the golden values to the bit."""
    for family in SETTINGS:
        model, said = transformers.AutoModelForCausalLM.from_pretrained(
            folder / family, output_loading_info=True, attn_implementation="eager"
        )
        assert not any(said.values()), said
        wanted, found = load_file(HERE / family / "golden.safetensors"), golden(model.eval())
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), family
        print(f"{family}: equal to the bit")


def real(folder: Path) -> None:
    """Likeliest answers of real weights to a few questions."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            answer = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[
                0, len(prompt) :
            ].tolist()
        found.append({"question": question, "prompt": prompt, "answer": answer, "text": tokenizer.decode(answer)})
    made = {"torch": torch.__version__, "transformers": transformers.__version__, "cases": found}
    (HERE / "smollm2.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--real", type=Path, metavar="FOLDER")
    parser.add_argument("--check", type=Path, metavar="FOLDER")
    parser.add_argument("--decoders", nargs="*", metavar="CASE")
    parser.add_argument("--check-decoders", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if given.real:
        real(given.real)
    elif given.check:
        check(given.check)
    elif given.check_decoders:
        check_decoders(given.check_decoders)
    elif given.decoders is not None:
        make_decoders(given.decoders)
    else:
        for family in SETTINGS:
            make(family)


if __name__ == "__main__":
    main()
