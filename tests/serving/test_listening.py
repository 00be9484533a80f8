"""Taking an address."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.serving.listening import take_address, url_of


def test_a_free_port_is_taken_and_told() -> None:
    with take_address("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert url_of(taken) == f"http://127.0.0.1:{port}/v1"


def test_an_address_that_is_taken_or_elsewhere_is_refused() -> None:
    with take_address("127.0.0.1", 0) as taken:
        with pytest.raises(ConfigError, match=r"can't listen on 127\.0\.0\.1 port \d+: Address already in use"):
            take_address("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match=r"can't listen on 192\.0\.2\.1"):
        take_address("192.0.2.1", 0)
    with pytest.raises(ConfigError, match="is no address"):
        take_address("no such host", 0)
