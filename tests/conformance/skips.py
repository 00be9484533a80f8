"""The shared tests that do not run on our families, each with its reason; a skip that is not written here fails."""

NO_EMBEDDINGS = "MegaByte embeds bytes twice and refuses embeddings with a ConfigError"
# Shared test, or how the names of several begin -> why no family runs it.
SKIPS = {
    "test_training_gradient_checkpointing_use_reentrant_true": (
        "refused with a ConfigError: the reentrant form records router logits without a gradient"
    ),
    "test_model_weights_reload_no_missing_tied_weights": (
        "it loads a file that holds none of the model's weights, which is a CheckpointError here, not a warning"
    ),
    "test_keep_in_fp32_modules_exist": (
        "the list names parts of every router that there is, and a configuration has one router"
    ),
    "test_model_rope_": (
        "it takes `rope_parameters` that are None, as they are here where nothing is scaled, for a table by kind of "
        "layer; tests/layers/attention/test_rope_types.py compares the angles with transformers' own"
    ),
    "test_resize_position_vector_embeddings": "learned positions are not resized; rotary ones need no table",
    "test_sdpa_can_dispatch_composite_models": "text only",
    "test_bc_cache_name_forward": (
        "it wants a warning of the old name; both names are taken in silence on every version, which the table of "
        "families checks"
    ),
    "test_moe_models_record_router_logits": (
        "it looks for experts in the source file of the model class; "
        "test_output_router_logits_from_config and tests/models/test_heads.py check the same"
    ),
}
# A version of transformers that has the test, where not all supported ones do.
SINCE = {"test_moe_models_record_router_logits": "5.23", "test_bc_cache_name_forward": "5.24"}
# Case -> shared test, or how the names of several begin -> why this case does not run it.
CASE_SKIPS: dict[str, dict[str, str]] = {
    "GPT2Rotary": {
        "test_eager_matches_sdpa_inference": "it sets a sliding window, which is refused beside a short convolution",
    },
    "MegaByte": {
        "test_tp_plan_matches_params": "its plan is made of those of two decoders, of which one has no embedding",
        "test_eager_matches_sdpa_inference": (
            "it sets a sliding window, which is refused; tests/models/megabyte/test_model.py compares the two"
        ),
        "test_attention_outputs": "two decoders give their attentions one after the other, over patches and places",
        "test_retain_grad_hidden_states_attentions": "hidden states are picked byte by byte; no loss passes them",
        "test_inputs_embeds": NO_EMBEDDINGS,
        "test_internal_model_config_and_subconfig_are_same": (
            "it knows the local decoder's configuration by its class, which is that of the global one's, too"
        ),
        "test_can_capture_specific_layers_hidden_states": "all hidden states are given, whichever are asked for",
        "test_config_to_json_string": "a local_config that was given in part is written out whole",
        "test_config_from_and_save_pretrained_composite": (
            "the local decoder's configuration is read with the whole, not by itself"
        ),
    },
}

# How the shared tests themselves say that they do not apply (a regular expression) -> why that is right here.
SELF_SKIPS = {
    r"test requires": "hardware or an optional package that this machine lacks",
    r"test is slow": "slow ones need an accelerator, too",
    r"not (a )?composite": "text only",
    r"does not (support |output |support output_)attentions": "only attention has weights; `Case.has_attentions`",
    r"No subconfigs": "text only",
    r"axial RoPE": "text only",
    r"sequence-to-sequence": "decoder only",
    r"No conversion found": "checkpoints hold the weights under the model's own names",
    r"sliding window": "no layer has a sliding window",
    r"Not a prioritized model": "asked of every model from 5.23 on; older ones ask those with a copyright line",
    r"does not support RoPE scaling|does not have RoPE": "no configuration has `rope_parameters`",
}
