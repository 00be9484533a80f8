"""Which hosts mean this machine alone."""

from moe_hf.base.loopback import is_loopback


def test_which_hosts_are_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost", "LocalHost.")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example", "")))
