"""What is worked out before a run: memory."""

from moe_hf.config.presets import create_moe_config
from moe_hf.training.runs.planning import activation_bytes
from moe_hf.training.training_arguments import MoETrainingArguments


def test_megabyte_keeps_less_per_byte_than_a_decoder_of_its_global_width_over_bytes(tmp_path):
    training = MoETrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    config = create_moe_config("tiny", architecture="megabyte")
    # Two layers each, one of them sparse; logits of 264 ids, three times.
    of_patch = 4 * (2 * 12 * 256 + 2 * (256 + 768) + 2 * 1024)
    of_place = 4 * (2 * 12 * 128 + 2 * (128 + 384) + 2 * 512)
    # Places of a patch: eight, behind four that are read again.
    assert activation_bytes(config, 80, training) == 10 * of_patch + 120 * of_place + 80 * 3 * 4 * 264
    assert activation_bytes(config, 80, training) < activation_bytes(config.global_config, 80, training)
