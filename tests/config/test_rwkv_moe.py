"""The RWKV family's configuration: the token shift follows from the version."""

from moe_hf import RWKVWithMoEConfig


def test_the_token_shift_follows_the_version(tmp_path) -> None:
    assert RWKVWithMoEConfig().mlp_token_shift == "rwkv7"
    assert RWKVWithMoEConfig(rwkv_version=4).mlp_token_shift == "rwkv4"
    assert RWKVWithMoEConfig(rwkv_version=4, mlp_token_shift="none").mlp_token_shift == "none"
    RWKVWithMoEConfig().save_pretrained(tmp_path)
    assert RWKVWithMoEConfig.from_pretrained(tmp_path).mlp_token_shift == "rwkv7"
    assert RWKVWithMoEConfig.from_pretrained(tmp_path, rwkv_version=4).mlp_token_shift == "rwkv4"
