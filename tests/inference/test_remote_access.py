"""The address and the key of a server, and that neither's secrets are shown."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.inference.remote_access import KEY_VARIABLE, check_url, client_options, shown_url


@pytest.mark.parametrize(
    "url", ["http://h", "https://h/v1", "http://[::1]:8000/v1", "http://me:s3cret@h:80/v1?key=s3cret"]
)
def test_an_address_is_taken_and_shown_without_secrets(url) -> None:
    check_url(url)
    assert "s3cret" not in shown_url(url)
    assert shown_url(url).startswith("http")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://me:s3cret@h",
        "http://me:s3cret/x@h",
        "http://me:s3cret@",
        "",
        "h:80",
        "http://",
        "http:///v1",
        "http://[::1",
        "http://h:x",
        "http://h:99999",
        "http://h /v1",
        "http://h\n",
    ],
)
def test_what_is_no_address_is_refused_without_its_secrets(url) -> None:
    with pytest.raises(ConfigError, match="--url must") as caught:
        check_url(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("key", ["s3\rcret", "s3cré", "s3 cret", "s3\x00cret"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key, monkeypatch) -> None:
    # The system's own environment holds no zero byte.
    monkeypatch.setattr("os.environ", {KEY_VARIABLE: key})
    with pytest.raises(ConfigError, match="the key in OPENAI_API_KEY must be one word of ASCII") as caught:
        client_options("https://h/v1")
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(("given", "sent"), [("s3cret\r\n", "s3cret"), (" ", "none"), ("", "none")])
def test_white_space_around_a_key_is_no_part_of_it(given, sent, monkeypatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, given)
    assert client_options("https://h/v1")["api_key"] == sent
