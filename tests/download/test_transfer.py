"""Getting a file over a bad line, from servers of every kind."""

import io
import shutil
import socket
import threading
from collections import namedtuple

import pytest
from rich.console import Console

from segbench import download
from segbench.data.voc import VOC
from segbench.download import transfer
from tests.download.stand_ins import get, refused, tar, voc_files


def test_breaks_off_several_times_and_goes_on_by_range(serve, site, tmp_path):
    body = serve("voc", tar(voc_files()))
    site.cuts = [len(body) // 3, 0, 10_000, 0, 0]
    get("voc", tmp_path)
    ranges = [asked.get("Range") for asked in site.asked]
    third = len(body) // 3
    further = f"bytes={third + 10_000}-"
    assert ranges == [None, f"bytes={third}-", f"bytes={third}-", further, further, further]
    assert {asked.get("If-Range") for asked in site.asked[1:]} == {'"one"'}
    assert site.sent == len(body)
    assert len(VOC("trainval", tmp_path)) == 3


def test_a_connection_that_is_reset_goes_on(serve, site, tmp_path):
    serve("voc", tar(voc_files()))
    site.cuts, site.resets = [30_000, 10_000], 2
    get("voc", tmp_path)
    assert len(site.asked) == 3
    assert len(VOC("trainval", tmp_path)) == 3


def test_a_server_that_falls_silent_is_asked_again(serve, site, tmp_path, monkeypatch):
    body = serve("voc", tar(voc_files()))
    monkeypatch.setattr(transfer, "TIMEOUT_S", 3)
    site.silent = threading.Event()
    get("voc", tmp_path)
    site.silent.set()
    assert [asked.get("Range", "").startswith("bytes=") for asked in site.asked] == [False, True]
    assert site.sent < 2 * len(body)


def test_gives_up_in_one_line_and_the_next_call_goes_on(serve, site, tmp_path):
    body = serve("voc", tar(voc_files()))
    site.cuts = [20_000, 0, 0, 0]
    part = tmp_path / ".download/VOCtrainval_11-May-2012.tar.part"
    message = refused(r"ended after 20\.0 kB of \d+\.\d kB, 4 times in a row", "voc", tmp_path)
    assert f"20.0 kB are kept in {part} and the same command goes on from there; --url" in message
    assert part.read_bytes() == body[:20_000]
    site.cuts, site.asked = [], []
    get("voc", tmp_path)
    assert [asked["Range"] for asked in site.asked] == ["bytes=20000-"]
    assert site.sent == len(body)


def test_ctrl_c_keeps_the_part(serve, site, tmp_path, monkeypatch):
    body = serve("voc", tar(voc_files()))
    site.cuts = [20_000]

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer.time, "sleep", interrupt)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        download.get("voc", tmp_path, None, Console(file=out))
    assert "the same command goes on from there" in out.getvalue()
    get("voc", tmp_path)
    assert site.sent == len(body)


def test_a_server_that_ignores_range_starts_anew(serve, site, tmp_path):
    body = serve("voc", tar(voc_files()))
    site.ranges, site.cuts = False, [30_000, 40_000]
    get("voc", tmp_path)
    assert [("Range" in asked) for asked in site.asked] == [False, True, True]
    assert site.sent == 70_000 + len(body)
    assert len(VOC("trainval", tmp_path)) == 3


def test_a_server_that_always_ends_at_the_same_place_is_given_up(serve, site, tmp_path):
    serve("voc", tar(voc_files()))
    site.ranges, site.cuts = False, [30_000] * 50
    refused("4 times in a row", "voc", tmp_path)
    assert len(site.asked) == 4


@pytest.mark.parametrize("mark", ["etag", "modified"])
def test_a_file_that_changed_between_is_not_spliced(serve, site, tmp_path, mark):
    old = serve("voc", tar(voc_files()))
    site.etag, site.modified = ('"one"', None) if mark == "etag" else ('W/"weak"', "Mon, 01 Jan 2024 00:00:00 GMT")
    site.cuts = [30_000, 0, 0, 0]
    refused("30.0 kB are kept", "voc", tmp_path)
    new = serve("voc", tar(voc_files()))
    assert new != old
    site.etag, site.modified = ('"two"', None) if mark == "etag" else ('W/"weak"', "Tue, 02 Jan 2024 00:00:00 GMT")
    site.asked, site.sent = [], 0
    get("voc", tmp_path)
    wanted = '"one"' if mark == "etag" else "Mon, 01 Jan 2024 00:00:00 GMT"
    assert [(asked["Range"], asked["If-Range"]) for asked in site.asked] == [("bytes=30000-", wanted)]
    assert site.sent == len(new)


def test_a_changed_file_without_validator_is_found_by_its_checksum(serve, site, tmp_path):
    serve("voc", tar(voc_files()))
    site.etag, site.cuts = None, [30_000, 0, 0, 0]
    refused("30.0 kB are kept", "voc", tmp_path)
    serve("voc", tar(voc_files()))
    refused("has MD5", "voc", tmp_path)
    assert "If-Range" not in site.asked[-1]
    get("voc", tmp_path)
    assert len(VOC("trainval", tmp_path)) == 3


def test_a_part_that_is_whole_already_needs_no_bytes(serve, site, tmp_path):
    body = serve("voc", tar(voc_files()))
    (tmp_path / ".download").mkdir()
    part = tmp_path / ".download/VOCtrainval_11-May-2012.tar.part"
    part.write_bytes(body)
    get("voc", tmp_path)
    assert site.sent == 0
    part.parent.mkdir()
    part.write_bytes(body + b"too long")
    shutil.rmtree(tmp_path / "VOCdevkit")
    get("voc", tmp_path)
    assert site.sent == len(body)


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 4)])
def test_an_error_of_the_server(serve, site, tmp_path, status, requests):
    serve("voc", b"")
    site.status = status
    refused(rf"^{site.url}: the server answers {status} \w+.*--url URL takes a mirror's copy", "voc", tmp_path)
    assert len(site.asked) == requests  # only what may pass is tried again


def test_an_unreachable_host(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        refused(r"no connection \(.*refused\), 4 times in a row; the same command", "voc", tmp_path, url)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "/tmp/x.tar", "http://", "http://h:x/", "http://a b"]
)
def test_only_http_is_taken(tmp_path, url):
    message = refused("cannot download from", "voc", tmp_path / "new", url)
    assert message == f"cannot download from '{url}'; wanted is a URL that starts with http:// or https://"
    assert not (tmp_path / "new").exists()


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_named_before_the_download(serve, site, tmp_path, monkeypatch):
    body = serve("voc", tar(voc_files()))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**6, 0, 2 * len(body) - 1))
    refused(
        r"\.download has [\d.]+ kB free, [\d.]+ kB are needed to download and unpack it; make room", "voc", tmp_path
    )
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**6, 0, 2 * len(body)))
    get("voc", tmp_path)
    assert len(VOC("trainval", tmp_path)) == 3
