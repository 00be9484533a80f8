import json
import os
import stat
from pathlib import Path

import pytest

from moe_hf.base.errors import CheckpointError
from moe_hf.inference import transcript
from moe_hf.inference.transcript import TranscriptFile, read_transcript

HI = [{"role": "user", "content": "hi ☃"}, {"role": "assistant", "content": "a\nb"}]
BYE = [{"role": "system", "content": "s"}, {"role": "user", "content": "bye"}]


def line(*messages):
    return json.dumps({"messages": list(messages)})


def test_a_conversation_comes_back_as_it_was(tmp_path):
    path = tmp_path / "t.jsonl"
    TranscriptFile(path).save(HI)
    assert read_transcript(path) == [HI]
    assert path.read_text(encoding="utf-8").count("\n") == 1


def test_earlier_conversations_of_a_file_stay(tmp_path):
    path = tmp_path / "t.jsonl"
    TranscriptFile(path).save(HI)
    later = TranscriptFile(path)
    later.save(BYE)
    later.save([*BYE, {"role": "assistant", "content": "!"}])
    later.start_next([*BYE, {"role": "assistant", "content": "!"}])
    later.save(HI)
    assert [len(conversation) for conversation in read_transcript(path)] == [2, 3, 2]


def test_the_file_is_replaced_and_not_written_over(tmp_path):
    path, old = tmp_path / "t.jsonl", tmp_path / "old.jsonl"
    file = TranscriptFile(path)
    file.save(HI)
    # Whoever holds the old file open, or linked as here, never sees half of the new one.
    old.hardlink_to(path)
    file.save(BYE)
    assert (read_transcript(old), read_transcript(path)) == ([HI], [BYE])
    assert sorted(os.listdir(tmp_path)) == ["old.jsonl", "t.jsonl"]


def test_a_file_that_is_no_transcript_is_never_overwritten(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("import os\n")
    with pytest.raises(CheckpointError, match="line 1 is not JSON"):
        TranscriptFile(path)
    assert path.read_text() == "import os\n"


def test_a_failed_write_leaves_the_old_file_and_no_leftovers(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    file = TranscriptFile(path)
    file.save(HI)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        file.save(BYE)
    assert read_transcript(path) == [HI]
    assert os.listdir(tmp_path) == ["t.jsonl"]


def test_a_missing_folder_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="can't write"):
        TranscriptFile(tmp_path / "no" / "t.jsonl").save(HI)
    with pytest.raises(CheckpointError, match="can't read"):
        read_transcript(tmp_path / "none.jsonl")


U, A = HI


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("{not json", "line 1 is not JSON"),
        (line(U, A) + "\n" + line(U, U), "line 2, message 2: expected assistant here, got user"),
        ("[1, 2]", "not a conversation"),
        ('{"messages": []}', "not a conversation"),
        ('{"messages": "hi"}', "not a conversation"),
        ('{"messages": ["hi"]}', "expected an object with role and content, got str"),
        (line({"role": "wizard", "content": "x"}), "role must be one of system, user, assistant, got 'wizard'"),
        (line({"role": ["user"], "content": "x"}), "role must be one of"),
        (line({"role": "user"}), "content must be text, got NoneType"),
        (line({"role": "user", "content": ["x"]}), "content must be text, got list"),
        (line(A, U), "expected system or user here, got assistant"),
        (line(U, {"role": "system", "content": "s"}), "expected assistant here, got system"),
        ('{"messages": [{"role": "user", "content": "\\ud83e"}]}', "surrogate"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_conversation_is_refused_with_the_place(tmp_path, text, message):
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_transcript(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        read_transcript(path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    path.write_text(line(U, A))
    monkeypatch.setattr(transcript, "LARGEST_FILE", 10)
    with pytest.raises(CheckpointError, match="a transcript may have 10"):
        read_transcript(path)


def test_extra_keys_of_a_message_are_left_out(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"messages": [U | {"name": "x"}], "skill": "y"}))
    assert read_transcript(path) == [[U]]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")
def test_a_new_transcript_is_private_also_while_it_is_written(tmp_path, monkeypatch):
    seen = []
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, *a, **k: (write(path, *a, **k), seen.append(mode(path)))[0])
    old = os.umask(0o022)
    try:
        TranscriptFile(tmp_path / "t.jsonl").save(HI)
    finally:
        os.umask(old)
    assert seen == [0o600]
    assert mode(tmp_path / "t.jsonl") == 0o600


@pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")
def test_the_mode_and_the_link_that_the_user_gave_stay(tmp_path):
    (tmp_path / "far").mkdir()
    target, link, dangling = tmp_path / "far" / "t.jsonl", tmp_path / "t.jsonl", tmp_path / "new.jsonl"
    target.touch()
    target.chmod(0o640)
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "far" / "new.jsonl")
    for path in (link, dangling):
        TranscriptFile(path).save(HI)
        TranscriptFile(path).save(BYE)
        assert path.is_symlink()
        assert read_transcript(path) == [HI, BYE]
    assert (mode(target), mode(tmp_path / "far" / "new.jsonl")) == (0o640, 0o600)
    assert sorted(os.listdir(tmp_path)) == ["far", "new.jsonl", "t.jsonl"]


def test_a_device_is_no_transcript():
    with pytest.raises(CheckpointError, match="is no file"):
        TranscriptFile(Path(os.devnull))
