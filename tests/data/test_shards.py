"""Finding images in folders and tars, and writing shards."""

import gzip
import tarfile

import pytest

from pixelbert.data.records import ImageRef
from pixelbert.data.shards import ImageFinder, ImageNotFound, ShardWriter, Unpacker, image_suffix, tar_members
from pixelbert.errors import DataError


def put(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def test_members_lie_where_the_tar_says(tmp_path, tools):
    contents = {f"d/{'long' * 40}{i}.jpg": bytes([i]) * (i * 700) for i in range(5)}
    path = tools.write_tar(tmp_path / "a.tar", contents)
    members = list(tar_members(path))
    assert [m.name for m in members] == list(contents)
    data = path.read_bytes()
    assert [data[m.offset : m.offset + m.size] for m in members] == list(contents.values())
    seen: list[int] = []
    list(tar_members(path, seen.append))
    assert sum(seen) == len(data)


def test_links_point_to_their_target_and_folders_are_skipped(tmp_path):
    put(tmp_path / "in" / "a.jpg", b"picture")
    (tmp_path / "in" / "b.jpg").hardlink_to(tmp_path / "in" / "a.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "in", "in")
    one, two = tar_members(tmp_path / "a.tar")
    assert (one.offset, one.size) == (two.offset, two.size)
    assert {one.name, two.name} == {"in/a.jpg", "in/b.jpg"}


@pytest.mark.parametrize("keep", [100, 512 + 10, 2 * 1024 + 300])
def test_a_tar_that_is_cut_off(tmp_path, tools, keep):
    path = tools.write_tar(tmp_path / "a.tar", {"a.jpg": bytes(1000), "b.jpg": bytes(1000)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.tar: .*cut off"):
        list(tar_members(path))


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path, tools):
    path = tools.write_tar(tmp_path / "a.tar", {"a.jpg": bytes(512), "b.jpg": bytes(512)})
    data = bytearray(path.read_bytes())
    data[1024:1100] = b"\xff" * 76
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged at byte 1024"):
        list(tar_members(path))


def test_what_is_no_tar(tmp_path, tools):
    for name, data in (("a.tar", b"no tar at all" * 100), ("b.tar", gzip.compress(b"x"))):
        put(tmp_path / name, data)
    with pytest.raises(DataError, match="not a readable tar"):
        list(tar_members(tmp_path / "a.tar"))
    with pytest.raises(DataError, match="gzip-compressed"):
        list(tar_members(tmp_path / "b.tar"))
    with pytest.raises(DataError, match="no such file"):
        list(tar_members(tmp_path / "c.tar"))


def test_an_image_by_path_member_ending_or_base_name(tmp_path, tools):
    folder = tmp_path / "photos"
    direct, deep = put(folder / "val2014" / "a.jpg"), put(folder / "x" / "y" / "c.jpg")
    tools.write_tar(folder / "shard.tar", {"val/b.jpg": b"bbb"})
    finder = ImageFinder([folder])
    assert finder.find("val2014/a.jpg") == ImageRef(direct)
    assert finder.find("./val2014//a.jpg") == ImageRef(direct)
    assert finder.find("val2014\\a.jpg") == ImageRef(direct)
    assert finder.find(direct) == ImageRef(direct)
    assert finder.find("y/c.jpg") == ImageRef(deep)
    assert finder.find("c.jpg") == finder.find("other/c.jpg") == ImageRef(deep)
    for name in ("val/b.jpg", "b.jpg"):
        assert finder.find(name) == ImageRef(str(folder / "shard.tar"), 512, 3)
    assert finder.find("b.jpg").read() == b"bbb"
    assert ImageFinder([folder / "shard.tar"]).find("b.jpg").read() == b"bbb"


@pytest.mark.parametrize("name", ["none.jpg", "/nowhere/none.jpg", "val2014", ""])
def test_an_image_that_is_nowhere(tmp_path, name):
    put(tmp_path / "val2014" / "a.jpg")
    with pytest.raises(ImageNotFound, match=f"image '{name}'"):
        ImageFinder([tmp_path]).find(name)


def test_two_images_of_one_name_are_both_told(tmp_path, tools):
    one, two = put(tmp_path / "p" / "a.jpg"), put(tmp_path / "q" / "a.jpg")
    finder = ImageFinder([tmp_path])
    with pytest.raises(ImageNotFound) as caught:
        finder.find("a.jpg")
    assert str(caught.value) == f"image 'a.jpg' is ambiguous: {one} and {two}"
    assert finder.find("q/a.jpg").file == two  # a path tells them apart
    with pytest.raises(ImageNotFound, match="ambiguous"):
        ImageFinder([tmp_path / "p", tmp_path / "q"]).find("a.jpg")
    tar = tools.write_tar(tmp_path / "r" / "s.tar", {"x/b.jpg": b"1", "y/b.jpg": b"2"})
    with pytest.raises(ImageNotFound, match=rf"{tar} at byte 512 and {tar} at byte 1536"):
        ImageFinder([tar]).find("b.jpg")


def test_one_file_reached_by_two_roots_is_one(tmp_path):
    path = put(tmp_path / "p" / "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "p")
    assert ImageFinder([tmp_path / "p", tmp_path / "link"]).find("a.jpg").file == path
    assert ImageFinder([tmp_path / "p", tmp_path]).find("sub/a.jpg").file == path


def test_a_link_that_leads_back_up_is_not_followed_for_ever(tmp_path):
    path = put(tmp_path / "p" / "q" / "a.jpg")
    (tmp_path / "p" / "q" / "back").symlink_to(tmp_path / "p")
    assert ImageFinder([tmp_path]).find("a.jpg").file == path


def test_named_roots_come_before_guessed_ones(tmp_path):
    named, guessed = put(tmp_path / "n" / "a.jpg"), put(tmp_path / "g" / "a.jpg")
    only = put(tmp_path / "g" / "b.jpg")
    put(tmp_path / "g" / "1" / "2" / "3" / "4" / "deep.jpg")
    finder = ImageFinder([tmp_path / "n"], [tmp_path / "g"])
    assert finder.find("a.jpg").file == named != guessed
    assert finder.find("b.jpg").file == only
    with pytest.raises(ImageNotFound):
        finder.find("deep.jpg")  # a guessed folder is not searched without end


def test_roots_that_are_none(tmp_path):
    with pytest.raises(DataError, match="no such image folder"):
        ImageFinder([tmp_path / "none"])
    with pytest.raises(DataError, match=r"not a folder nor a \.tar"):
        ImageFinder([put(tmp_path / "a.zip")])


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz")]
)
def test_compressed_tars_are_refused_or_unpacked(tmp_path, tools, suffix, mode):
    path = tools.write_tar(tmp_path / "in" / f"a{suffix}", {"a.jpg": b"abc"}, mode)
    with pytest.raises(DataError, match="compressed tar cannot be read in place"):
        ImageFinder([path]).find("a.jpg")
    unpacker = Unpacker(tmp_path / "out")
    for _ in range(2):
        ref = ImageFinder([path.parent], unpacker=unpacker).find("a.jpg")
        assert ref.read() == b"abc"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["00000-a.tar"]


def test_a_damaged_compressed_tar(tmp_path, tools):
    path = tools.write_tar(tmp_path / "a.tar.gz", {"a.jpg": tools.picture()}, "w:gz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged or cut off"):
        Unpacker(tmp_path / "out").plain(str(path))
    with pytest.raises(DataError, match="zstd"):
        Unpacker(tmp_path / "out").plain(put(tmp_path / "b.tar", b"\x28\xb5\x2f\xfd"))


def test_folders_and_tars_at_urls(tmp_path, tools):
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe("/bucket/photos/a.jpg", b"one")
    system.pipe("/bucket/b.tar", tools.write_tar(tmp_path / "b.tar", {"b.jpg": b"two"}).read_bytes())
    finder = ImageFinder(["memory://bucket"])
    assert finder.find("photos/a.jpg").read() == finder.find("a.jpg").read() == b"one"
    assert finder.find("b.jpg").read() == b"two"
    assert finder.find("memory://bucket/photos/a.jpg").read() == b"one"


def test_shards_hold_what_was_added_and_are_plain_tars(tmp_path, tools):
    writer = ShardWriter(tmp_path, "images", max_images=3)
    images = [tools.picture(i) for i in range(7)]
    refs = [writer.add(f"{i:08d}.jpg", data) for i, data in enumerate(images)]
    writer.close()
    writer.close()  # harmless
    assert [ref.read() for ref in refs] == images
    names = [p.name for p in sorted(tmp_path.iterdir())]
    assert names == ["images-00000.tar", "images-00001.tar", "images-00002.tar"]
    with tarfile.open(tmp_path / names[1]) as tar:
        assert tar.getnames() == ["00000003.jpg", "00000004.jpg", "00000005.jpg"]
    assert [(m.offset, m.size) for n in names for m in tar_members(tmp_path / n)] == [
        (r.offset, r.length) for r in refs
    ]


def test_shards_keep_to_their_size_and_depend_on_the_images_alone(tmp_path, tools):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        writer = ShardWriter(tmp_path / name, "images", max_bytes=5000)
        for i in range(4):
            writer.add(f"{i}.jpg", bytes(2000))
        writer.close()
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert len(one) == 2
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("GIF", ".gif")])
def test_suffix_by_content(tools, kind, suffix):
    assert image_suffix(tools.picture(kind=kind)) == suffix
    assert image_suffix(b"other") == ""


def test_an_image_by_its_number_when_its_name_is_another(tmp_path, tools):
    plain = put(tmp_path / "coco" / "train2017" / "000000000025.jpg")
    put(tmp_path / "coco" / "labels" / "000000000026.txt")
    put(tmp_path / "coco" / "x" / "1000000000026.jpg")  # thirteen digits
    tar = tools.write_tar(tmp_path / "coco" / "a.tar", {"shapes_dev_000000000027.PNG": b"x"})
    finder = ImageFinder([tmp_path / "coco"])
    with pytest.raises(ImageNotFound, match="not found"):
        finder.find("COCO_train2014_000000000025.jpg")  # by its name alone
    assert finder.find("COCO_train2014_000000000025.jpg", 25).file == plain
    assert finder.find("000000000027", 27).file == str(tar)
    with pytest.raises(ImageNotFound, match="not found"):
        finder.find("000000000026", 26)
    official = put(tmp_path / "coco" / "y" / "COCO_train2014_000000000025.jpg")
    finder = ImageFinder([tmp_path / "coco"])
    assert finder.find("COCO_train2014_000000000025.jpg", 25).file == official  # the name comes first
    with pytest.raises(ImageNotFound, match="ambiguous"):
        finder.find("000000000025.png", 25)
