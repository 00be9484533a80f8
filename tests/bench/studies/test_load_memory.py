from moe_hf.bench.studies.load_memory import LoadSizes, measure_load


def test_reading_a_dense_gpt2_as_experts_takes_little_more_than_their_own_bytes():
    sizes = LoadSizes(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=512, num_experts=64)
    measured = measure_load(sizes)
    assert measured["moe_parameters"] == measured["moe_bytes"] / 4
    assert measured["extra_bytes"] == measured["peak_bytes"] - measured["resident_bytes_before"]
    assert 1.0 < measured["extra_over_moe_bytes"] < 1.5
