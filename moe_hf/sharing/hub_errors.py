"""Says in the words of this package what the Hub answers: what was wrong, and what to do about it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants, errors

from moe_hf.base.errors import CheckpointError, ConfigError, first_line

_FORBIDDEN, _MOVED, _UNKNOWN_TOKEN, _SERVER = 403, 412, 401, 500
# A time that ran out, and too many requests.
_PASSING = (408, 429)


@contextmanager
def in_words(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Within the `with` block an error of the Hub, or on the way to it, is one of ours.

    Args:
        repo_id: the repository that is asked for.
        revision: the branch, tag or commit that is asked for.

    Raises:
        ConfigError: the Hub takes no such name.
        CheckpointError: there is no such repository or revision for this token, it may not be written, or somebody else
            wrote to it meanwhile.
        OSError: the Hub cannot be reached, or fails.
    """
    try:
        yield
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:
        told = _told(error, repo_id, revision)
        if told is None:
            raise
        raise told from error


def _told(error: BaseException, repo_id: str, revision: str | None) -> Exception | None:
    """What to raise for it; None for what has nothing to do with the Hub, such as a full disk."""
    cause = _cause(error)
    if isinstance(cause, errors.HFValidationError):
        return ConfigError(
            f"{repo_id!r} is no name of a repository ({first_line(cause)}); it is of the form owner/name"
        )
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return OSError(f"the Hub is not asked for {repo_id}, since HF_HUB_OFFLINE is set; unset it")
    if isinstance(cause, errors.HfHubHTTPError):
        return _refused(cause, repo_id, revision)
    if isinstance(cause, errors.HTTPError):
        # Any error of the HTTP client: no network, no such host, a connection that breaks.
        reason = first_line(cause) or type(cause).__name__
        return OSError(f"{constants.ENDPOINT} cannot be reached for {repo_id} ({_plain(reason)}); try again")
    if isinstance(cause, errors.LocalEntryNotFoundError):
        return OSError(f"{constants.ENDPOINT} cannot be reached for {repo_id} ({_plain(first_line(cause))}); try again")
    if isinstance(cause, OSError) and "Consistency check failed" in str(cause):
        return OSError(f"a file of {repo_id} arrived cut short ({_plain(first_line(cause))}); try again")
    if isinstance(cause, ValueError) and "README.md" in str(cause):
        return CheckpointError(f"the Hub does not take the card: {' '.join(str(cause).split())}; correct README.md")
    return None


def _refused(error: Any, repo_id: str, revision: str | None) -> Exception:
    """An answer that is an error."""
    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        url = f"{constants.ENDPOINT}/{repo_id}"
        return CheckpointError(f"{repo_id} is given to those alone whom its owner lets in; ask at {url}, and log in")
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(f"there is no model {repo_id} on the Hub{_for_whom()}")
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"{repo_id} has no branch, tag or commit {revision or 'of that name'} (any more); see which ones there are "
            f"at {constants.ENDPOINT}/{repo_id}/tree/main"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return CheckpointError(f"a file of {repo_id} that its list names is not there (any more); try again")
    if status == _UNKNOWN_TOKEN:
        return CheckpointError(
            f"the Hub does not know {_token_place()}; log in with `hf auth login`, or set HF_TOKEN to a valid token"
        )
    if status == _FORBIDDEN:
        return CheckpointError(
            f"{_token_place()} may not do that to {repo_id} ({_message(error)}); it needs the role write, and the "
            "owner must be you or an organization of yours"
        )
    if status == _MOVED:
        return CheckpointError(
            f"somebody else wrote to {repo_id} meanwhile, so nothing of this was added; look at what is new there, and "
            "push again"
        )
    if status < _SERVER and status not in _PASSING:
        return CheckpointError(f"the Hub does not take this for {repo_id} ({status}: {_message(error)})")
    return OSError(f"the Hub fails on {repo_id} ({status}: {_message(error)}); try again later")


def _for_whom() -> str:
    from huggingface_hub import get_token

    if get_token() is None:
        return "; it is misspelt, or private: then log in with `hf auth login`, or set HF_TOKEN"
    return f" that {_token_place()} may see; it is misspelt, or somebody else's and private"


def _token_place() -> str:
    return "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token of this login"


def _message(error: Any) -> str:
    return _plain(error.server_message or first_line(error))


def _cause(error: BaseException) -> BaseException:
    """The error at the bottom: uploads in threads wrap it into a RuntimeError."""
    known = (errors.HTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled)
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, known):
            return found
        found = found.__cause__
    return error


def _plain(text: str) -> str:
    """Without what stands behind the question marks of addresses: signatures that let whoever reads them write."""
    return re.sub(r"\?[^\s'\")]+", "", text).rstrip(". ")
