"""Errors of the Hub, and on the way to it, say what was wrong and what to do; others pass as they are."""

import errno
import re

import pytest
from huggingface_hub import HfApi, errors

from moe_hf import CheckpointError
from moe_hf.sharing.hub_errors import in_words
from tests.sharing.hub_server import Answer

ASKED = r"GET /api/models/me/moe"


def refuse(answer):
    def refused():
        raise answer

    return refused


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Answer(401, "Invalid credentials in Authorization header"), CheckpointError, "does not know the token"),
        (Answer(403, "Cannot access gated repo", "GatedRepo"), CheckpointError, "ask at http://127.0.0.1"),
        (Answer(403, "no"), CheckpointError, "the token in HF_TOKEN may not do that to me/moe (no); it needs"),
        (Answer(404, "", "RepoNotFound"), CheckpointError, "there is no model me/moe on the Hub that the token in"),
        (Answer(404, "", "RevisionNotFound"), CheckpointError, "has no branch, tag or commit v2 (any more)"),
        (Answer(404, "", "EntryNotFound"), CheckpointError, "a file of me/moe that its list names is not there"),
        (Answer(412, "moved"), CheckpointError, "somebody else wrote to me/moe meanwhile"),
        (Answer(500, "out of order"), OSError, "the Hub fails on me/moe (500: out of order); try again later"),
        (Answer(409, "a?X-Amz-Signature=secret is taken"), CheckpointError, "does not take this for me/moe (409: a is"),
        (Answer(429, "slower"), OSError, "the Hub fails on me/moe (429: slower); try again later"),
    ],
)
def test_an_answer_that_is_an_error_says_what_to_do(hub, answer, error, text):
    hub.on.append((ASKED, refuse(answer)))
    with pytest.raises(error, match=re.escape(text)), in_words("me/moe", "v2"):
        HfApi().repo_info("me/moe")


def test_what_a_thread_has_wrapped_is_found(hub):
    def upload():
        try:
            HfApi().repo_info("me/moe")
        except errors.HfHubHTTPError as error:
            raise RuntimeError("while uploading") from error

    with pytest.raises(CheckpointError, match="there is no model me/moe"), in_words("me/moe"):
        upload()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), ZeroDivisionError(), KeyboardInterrupt()])
def test_what_is_not_the_hubs_passes(error):
    with pytest.raises(type(error)) as caught, in_words("me/moe"):
        raise error
    assert caught.value is error


def test_a_token_of_a_login_is_called_one(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_unknown")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(CheckpointError, match="the Hub does not know the token of this login"), in_words("me/moe"):
        HfApi().repo_info("me/moe")
