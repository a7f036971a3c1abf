"""Configurations: both styles of transformers are read, and what the decoder lacks is refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from eggroll.llm.model.config import ARCHITECTURES, DecoderConfig, Rope, config_from
from eggroll.llm.model.families.rms import PHI3_CODE
from eggroll.llm.model.families.table import FAMILIES, Family
from eggroll.training.errors import RunError
from tests.llm.decoders import CASES, LONG
from tests.llm.families import LLAMA3, SETTINGS


def test_old_and_new_styles_of_rotary_positions_agree():
    for family, settings in SETTINGS.items():
        old = config_from(settings)
        plain = {key: value for key, value in settings.items() if not key.startswith("rope_")}
        theta = settings["rope_theta"]
        scaling = settings.get("rope_scaling") or {"rope_type": "default"}
        new = {"rope_theta": theta, **scaling}
        if family == "gemma3":
            local = {"rope_theta": settings["rope_local_base_freq"], "rope_type": "default"}
            new = {"full_attention": new, "sliding_attention": local}
        assert config_from(plain | {"rope_parameters": new}) == old, family
        assert old.rope.theta == theta and old.rope.kind == scaling["rope_type"]


def test_each_family_has_its_ways():
    read = {family: config_from(settings) for family, settings in SETTINGS.items()}
    assert [family for family, config in read.items() if config.biases == ("query", "key", "value")] == [
        "qwen2",
        "qwen2-window",
    ]
    assert [family for family, config in read.items() if config.query_key_norm == "head"] == ["qwen3", "gemma3"]
    assert [family for family, config in read.items() if not config.tied] == ["llama", "llama3", "qwen2-window"]
    gemma = read["gemma3"]
    assert (
        gemma.norm_offset == 1 and len(gemma.norms) == 4 and gemma.sliding == (True, False, True) and gemma.window == 4
    )
    assert gemma.attention_scale == 24**-0.5 and gemma.activation == "gelu_pytorch_tanh"
    assert gemma.rope == Rope(1e6, "linear", 8.0) and gemma.sliding_rope == Rope(10.0)
    assert read["llama3"].rope == Rope(500.0, "llama3", 8.0, 1.0, 4.0, 16) and read["llama3"].head_width == 8


def test_defaults_are_those_of_the_architecture():
    sparse = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 6}
    llama = config_from({"model_type": "llama", **sparse})
    assert (llama.key_value_heads, llama.head_width, llama.tied, llama.rope) == (4, 16, False, Rope(10000.0))
    gemma = config_from({"model_type": "gemma3_text", **sparse})
    assert gemma.tied and gemma.head_width == 256 and gemma.sliding == (True,) * 5 + (False,)
    assert gemma.rope == Rope(1e6) and gemma.sliding_rope == Rope(1e4)


def test_qwens_window_counts_only_where_it_is_used():
    settings = SETTINGS["qwen2"] | {"sliding_window": 8, "max_window_layers": 1}
    assert config_from(settings | {"use_sliding_window": False}).sliding == ()
    used = config_from(settings | {"use_sliding_window": True})
    assert used.sliding == (False, True) and used.window == 8 and used.sliding_rope is None


REFUSED = [
    ("llama", {"model_type": "mamba"}, "'mamba'; known are: llama"),
    ("llama", {"model_type": None}, "architecture None"),
    ("gemma3", {"model_type": "gemma3"}, "the part for text is read, by its text_config"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("llama", {"hidden_act": "tanh"}, "activation 'tanh'; known are silu"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "finetuned": True}}, "finetuned=True"),
    ("llama", {"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}, "type 'ntk'"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ("gemma3", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
    ("llama", {"num_key_value_heads": 3}, "4 query heads and 3 heads of keys"),
    ("llama", {"head_dim": 5}, r"heads of 5 features|even rotary dimension"),
    ("llama", {"hidden_size": "wide"}, "does not accept"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp=2"),
    ("llama", {"sliding_window": 8}, "sliding_window=8"),
    ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types=['sliding_attention'"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved=True"),
    ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config"),
    ("qwen3", {"num_experts": 4, "moe_intermediate_size": 8}, "moe_intermediate_size=8, num_experts=4"),
    ("qwen2", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar=24"),
    ("gemma3", {"hidden_act": "silu"}, "hidden_act='silu'"),
    ("gemma3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama", {"rope_scaling": {"factor": 8.0}}, "{'factor': 8.0} in a description of rotary positions"),
    ("gemma3", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "name what is meant as rope_type"),
    ("qwen2", {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1]}}, "mrope_section=[1, 1]"),
    ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers=[0]"),
    ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
    ("mixtral", {"num_experts_per_tok": 6}, "experts of a token=6; a whole number from 1 to 5"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm=True"),
    ("phi3", {"auto_map": {"AutoModelForCausalLM": "mine.Phi3ForCausalLM"}}, "auto_map="),
    (
        "phi3-longrope",
        {"rope_scaling": {**LONG, "long_factor": [1.0]}},
        "long_factor",
    ),
    ("gemma3-wrapper", {"architectures": ["Gemma3ForQuestionAnswering"], "answers": 1}, "answers=1"),
    ("gemma3", {"rope_parameters": {"full_attention": {}, "chunked_attention": {}}}, "chunked_attention={}"),
]


@pytest.mark.parametrize(("family", "change", "message"), REFUSED)
def test_what_the_decoder_lacks_is_refused_by_name(family, change, message):
    with pytest.raises(RunError, match=message.replace("[", r"\[")):
        config_from({**CASES, **SETTINGS}[family] | change)


@pytest.mark.parametrize("family", [*SETTINGS, *CASES])
def test_a_setting_that_nobody_knows_is_refused_by_name(family):
    with pytest.raises(RunError, match="got qk_normed=True in the configuration of this"):
        config_from({**SETTINGS, **CASES}[family] | {"qk_normed": True})


# What the families' own files have besides what transformers writes for all models.
OF_FILES: dict[str, dict[str, Any]] = {
    "llama": {"pretraining_tp": 1, "is_llama_config": True, "rope_interleaved": False, "tokenizer_class": "L"},
    "qwen2": {"use_mrope": False, "max_window_layers": 28, "use_sliding_window": False, "sliding_window": 131072},
    "qwen3": {"attention_bias": False, "max_window_layers": 28, "sliding_window": None},
    "gemma3_text": {"cache_implementation": "hybrid", "sliding_window_pattern": 6, "_sliding_window_pattern": 6},
    "gemma": {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
    "phi3": {"embd_pdrop": 0.0, "auto_map": {**PHI3_CODE, "AutoTokenizer": "Xenova/gpt-4o"}},
    "smollm3": {"max_window_layers": 28, "use_sliding_window": False, "_name_or_path": "x"},
    "gpt2": {"n_ctx": 1024, "summary_type": "cls_index", "attn_pdrop": 0.2, "task_specific_params": {}},
    "gptj": {"n_ctx": 2048, "rotary": True, "scale_attn_weights": True, "gradient_checkpointing": False},
    "gpt_neox": {"rotary_pct": 0.25, "hidden_dropout": 0.1, "classifier_dropout": 0.1},
    "starcoder2": {"mlp_type": "default", "norm_type": "layer_norm", "residual_dropout": 0.1},
    "mixtral": {"router_aux_loss_coef": 0.1, "output_router_logits": True},
    "qwen3_moe": {"router_aux_loss_coef": 0.1, "mlp_only_layers": [], "max_window_layers": 48},
    "gpt_oss": {"experts_per_token": 4, "initial_context_length": 4096, "router_aux_loss_coef": 0.9},
}
OF_ALL = {"torch_dtype": "bfloat16", "use_cache": True, "attention_dropout": 0.1, "temperature": 0.7, "num_labels": 3}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_defaults_and_what_changes_nothing_are_accepted(kind):
    from transformers import AutoConfig

    plain = config_from({"model_type": kind})
    assert config_from({"model_type": kind, "num_hidden_layers": 2}).layers == 2  # no full layer in Gemma's
    assert config_from(AutoConfig.for_model(kind).to_dict()) == plain
    assert config_from({"model_type": kind, **OF_FILES.get(kind, {}), **OF_ALL}) == plain


def test_the_docs_name_every_architecture_that_is_read():
    page = (Path(__file__).parents[3] / "docs" / "llm.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {kind for kind in ARCHITECTURES if not any(f"`{kind}`" in row for row in rows)} == set()


def test_a_family_that_is_only_named_does_not_lose_its_window(monkeypatch):
    """Its default has one, in no file: the decoder reads windows of the families that it knows to have them."""
    monkeypatch.setitem(FAMILIES, "mistral", Family("Mistral"))
    for given in ({}, {"sliding_window": 8}):
        with pytest.raises(RunError, match="got sliding_window="):
            config_from({"model_type": "mistral", **given})


def test_llama3s_frequencies_are_kept_scaled_or_between():
    from eggroll.llm.model.parts.rotary import frequencies

    rope = config_from(SETTINGS["llama3"]).rope
    plain, scaled = frequencies(Rope(rope.theta), 16), frequencies(rope, 16)
    for before, after in zip(plain.tolist(), scaled.tolist(), strict=True):
        turns = LLAMA3["original_max_position_embeddings"] * before / (2 * math.pi)  # within the first texts
        share = min(max((turns - 1.0) / 3.0, 0.0), 1.0)
        assert after == pytest.approx(before * share + before / 8 * (1 - share), rel=1e-5)
    assert scaled[0] < plain[0] and scaled[-1] == pytest.approx(plain[-1] / 8)


def test_a_configuration_is_hashable():
    assert len({config_from(settings) for settings in SETTINGS.values()} | {DecoderConfig(8, 8, 8, 1, 1, 1, 8)}) == 8


def test_what_is_read_is_left_as_it_was():
    scaling = {"rope_type": "linear", "factor": 2.0}
    given = {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": scaling}
    assert config_from(given).rope.theta == 500
    assert scaling == {"rope_type": "linear", "factor": 2.0}
