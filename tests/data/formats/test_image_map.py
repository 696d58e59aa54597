"""Image maps: from what annotations call an image to its file."""

import gzip

import pytest

from pixelbert.data.formats.image_map import ImageMap
from pixelbert.errors import DataError


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_several_maps_are_one(tmp_path):
    one, two = write(tmp_path / "a.json", '{"1": "a.jpg"}'), write(tmp_path / "b.json.gz", '{"2": "b", "1": "a.jpg"}')
    both = ImageMap([one, two])
    assert [both.get(name) for name in ("1", "2", "3")] == ["a.jpg", "b", None]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "is no image map"), ("{}", "is no image map"), ('{"1": 2}', "'1' is 2, expected the name"),
        ('{"1": " "}', "'1' is ' ', expected the name"), ('{"1": "a', "the JSON is cut off at byte"),
        ("", "the file is empty"),
    ],
)  # fmt: skip
def test_files_that_are_no_map(tmp_path, text, reason):
    with pytest.raises(DataError, match=reason):
        ImageMap([write(tmp_path / "map.json", text)])


def test_maps_that_disagree(tmp_path):
    paths = [write(tmp_path / f"{name}.json", f'{{"1": "{name}"}}') for name in "ab"]
    with pytest.raises(DataError, match="b.json: '1' is 'b' here, and 'a' in an earlier map"):
        ImageMap(paths)


def test_the_map_beside_the_file_unless_one_is_given(tmp_path):
    source, names = tmp_path / "dev.json", ("image_map_dev.json", "image_map.json")
    assert ImageMap.given_or_beside((), source, names) is None
    write(tmp_path / "image_map.json", '{"1": "general"}')
    assert ImageMap.given_or_beside((), source, names).get("1") == "general"
    write(tmp_path / "image_map_dev.json.gz", '{"1": "own"}')
    assert ImageMap.given_or_beside((), source, names).get("1") == "own"
    given = write(tmp_path / "x.json", '{"1": "given"}')
    assert ImageMap.given_or_beside([given], source, names).get("1") == "given"
    with pytest.raises(DataError, match="lost.json: no such file"):
        ImageMap.given_or_beside([tmp_path / "lost.json"], source, names)
