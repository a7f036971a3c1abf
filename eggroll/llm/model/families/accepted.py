"""Which settings of a Hugging Face configuration are taken: those that are read, that change nothing, or that are off.

Every setting of the file and every default of its architecture is in one of these lists, or the model is refused: a
setting that nobody thought of may change what the model computes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from eggroll.llm.model.families.table import Family
from eggroll.llm.model.files import transformers
from eggroll.training.errors import RunError

__all__ = ["refuse_what_is_not_accepted", "refuse_what_rotary_positions_lack"]

READ = {
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_parameters",
    "rope_scaling",  # transformers moves this and the next into rope_parameters
    "rope_theta",
}

# Settings that change what a model computes and that the decoder lacks; each with the values that mean "off".
OFF: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "quantization_config": (None,),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": (None, {}),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1.0, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "sliding_window": (None,),  # of families that do not read it, as the next two
    "use_sliding_window": (False, None),
    "layer_types": (None,),
    "auto_map": (None,),  # code of the model's own, which may compute anything
}

# Names, initial values and what counts in training alone. Those of generation and of all models are asked of
# transformers; the third group are those that it wrote for all models before version 5.
NEUTRAL = {
    *("attention_dropout", "initializer_range", "torch_dtype", "name_or_path", "num_labels"),
    *("attn_implementation", "is_llama_config", "transformers.js_config", "unsloth_fixed", "unsloth_version"),
    *("finetuning_task", "is_decoder", "prefix", "sep_token_id", "task_specific_params", "tokenizer_class"),
    *("tf_legacy_loss", "torchscript", "use_bfloat16"),
    *("attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "residual_dropout", "embedding_dropout"),
    *("classifier_dropout", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "eod_token_id"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    *("gradient_checkpointing", "reorder_and_upcast_attn", "n_ctx"),
}


def refuse_what_is_not_accepted(given: Mapping[str, Any], full: Mapping[str, Any], family: Family) -> None:
    """Refuses, by name, settings that the decoder does not read and that are not known to change nothing.

    Args:
        given: the contents of `config.json`.
        full: the configuration with the defaults of its architecture.
        family: what is read of it.

    Raises:
        RunError: a setting that the decoder lacks, or that is in no list.
    """
    kind = full["model_type"]
    read = _read_of(family)
    every = {**given, **full}
    for name, taken in {**OFF, **family.only}.items():
        if name not in read and every.get(name, taken[0]) not in taken:
            raise RunError(
                f"got {name}={every[name]!r} in the configuration of this {kind} model; the decoder does "
                f"not compute that, only {name}={taken[0]!r}. Choose another model, or add it to "
                "eggroll/llm/model/parts."
            )
    known = read | OFF.keys() | family.only.keys() | NEUTRAL | _of_all_models()
    _refuse(every, {name for name in every if name not in known and not name.startswith("_")}, kind)


def _read_of(family: Family) -> set[str]:
    """The settings that are read of a family: its own names, and the usual ones that transformers takes for them."""
    usual = READ - ({"rms_norm_eps", "hidden_act"} & set(family.sizes.values())) | set(family.sizes)
    windows = {"all": {"sliding_window"}, "layer_types": {"sliding_window", "layer_types"}}.get(family.windows, set())
    return usual | windows | {*family.numbers, *family.switches, *family.reads}


def refuse_what_rotary_positions_lack(rope: Mapping[str, Any], kind: str, known: Collection[str]) -> None:
    """Refuses, by name, what a description of rotary positions says beyond what is `known`.

    Raises:
        RunError: a setting that is unknown.
    """
    _refuse(rope, rope.keys() - known, kind, "rope_parameters of the configuration")


def _of_all_models() -> set[str]:
    """Settings that are no family's own: bookkeeping, and how answers are drawn, which has its own options here."""
    library = transformers()
    return {field.name for field in fields(library.PreTrainedConfig)} | vars(library.GenerationConfig()).keys()


def _refuse(settings: Mapping[str, Any], unknown: Collection[str], kind: str, place: str = "configuration") -> None:
    if unknown:
        found = ", ".join(f"{name}={settings[name]!r}" for name in sorted(unknown))
        raise RunError(
            f"got {found} in the {place} of this {kind} model; only settings that the decoder computes, or that are "
            "known to change nothing, are taken. Choose another model, or say in eggroll/llm/model/families what "
            "the setting means."
        )
