import json

import pytest

from moe_hf.ops.experts.triton.tiles import Tiles, read_tiles, write_tiles

TABLE = {"one shape": Tiles(64, 128, 32, 4, 3), "another": Tiles(16, 64, 256, 8, 5)}


def test_what_was_written_is_read_again(tmp_path):
    path = tmp_path / "deeper" / "tiles.json"
    write_tiles(path, TABLE)
    assert read_tiles(path) == TABLE
    assert [file.name for file in path.parent.iterdir()] == ["tiles.json"]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\x00\xff"])
def test_a_broken_file_is_as_good_as_none(text, tmp_path):
    path = tmp_path / "tiles.json"
    path.write_text(text, encoding="latin-1")
    assert read_tiles(path) == {}
    assert read_tiles(tmp_path / "absent.json") == {}


@pytest.mark.parametrize(
    "numbers", [None, 7, [64, 128, 32], [64, 128, 30, 4, 3], [64, 128, 8, 4, 3], [64, 128, 32, 5, 3], ["64"] * 5]
)
def test_an_entry_that_is_no_tile_is_left_out(numbers, tmp_path):
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps({"bad": numbers, "good": [64, 128, 32, 4, 3]}))
    assert read_tiles(path) == {"good": Tiles(64, 128, 32, 4, 3)}


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("in the way")
    write_tiles(tmp_path / "file" / "tiles.json", TABLE)
    assert (tmp_path / "file").read_text() == "in the way"
