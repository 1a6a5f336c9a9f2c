"""The catalogue, and fetching from a server of this machine that sends good, cut, wrong and slow files."""

from __future__ import annotations

import io
import re
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from fuzz.files import reader
from small_networks import TinyNet
from test_tools import tool

import oskt_torchreid as oskt
from oskt_torchreid.errors import ZooError
from oskt_torchreid.files import read_json
from oskt_torchreid.files.weights import load_weights
from oskt_torchreid.host import models
from oskt_torchreid.host.compat import torchreid
from oskt_torchreid.zoo import conversion
from oskt_torchreid.zoo.catalogue import KINDS, Entry, catalogue, entry_named
from oskt_torchreid.zoo.downloads import CHECKSUMS, INCOMING, download, place_of
from oskt_torchreid.zoo.fetching import fetch_drive, fetch_https


class Handler(BaseHTTPRequestHandler):
    """Sends `server.content`, with byte ranges; `server.way` says what goes wrong."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        if server.way == "missing":
            return self.send_error(404)
        if server.way == "slow":
            server.release.wait(5)
            return None
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == server.version:
            start = int(re.match(r"bytes=(\d+)-", self.headers["Range"]).group(1))
        if start >= len(server.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("ETag", server.version)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        rest = server.content[start:]
        cut = server.way == "cut" or (server.way == "cut once" and not start)
        self.wfile.write(rest[: len(rest) // 2] if cut else rest)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def weights() -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": TinyNet(5).state_dict()}, stream)
    return stream.getvalue()


@pytest.fixture
def server(weights):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.way, server.version, server.ranges = weights, "good", '"1"', []
    server.release = threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def entry(server) -> Entry:
    link = f"http://127.0.0.1:{server.server_port}/tiny.pth"
    return Entry("tiny", "tests", "weights", "tiny_net", link, "https://example.org/tiny", "this test")


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- fetching --------------------------------------------------------------------------------------------------------


def test_a_good_file_is_fetched_once(server, entry, weights, tmp_path):
    path = download(entry, tmp_path)
    assert path == tmp_path / "tiny.pth" and path.read_bytes() == weights
    assert left_in(tmp_path) == ["checksums.json", "tiny.pth"]
    assert len(read_json(tmp_path / CHECKSUMS)["tiny"]) == 64
    assert download(entry, tmp_path) == path and len(server.ranges) == 1


def test_a_cut_transfer_goes_on_where_it_was(server, entry, weights, tmp_path):
    server.way = "cut once"
    assert download(entry, tmp_path).read_bytes() == weights
    half = len(weights) // 2
    assert server.ranges == [None, f"bytes={half}-"]


def test_a_server_that_always_cuts_leaves_what_arrived(server, entry, weights, tmp_path):
    server.way = "cut"
    message = r"cannot be fetched \(\d+ of \d+ bytes arrived\); \d+ bytes have arrived and are kept\. By hand: get the"
    with pytest.raises(ZooError, match=message):
        download(entry, tmp_path)
    kept = (tmp_path / INCOMING / "tiny.pth").stat().st_size
    assert len(weights) // 2 < kept < len(weights) and not place_of(entry, tmp_path).exists()
    server.way, server.ranges[:] = "good", []
    assert download(entry, tmp_path).read_bytes() == weights
    assert server.ranges == [f"bytes={kept}-"]


def test_another_version_is_fetched_from_its_beginning(server, entry, weights, tmp_path):
    server.way = "cut"
    with pytest.raises(ZooError):
        download(entry, tmp_path)
    stream = io.BytesIO()
    torch.save({"state_dict": TinyNet(7).state_dict()}, stream)
    server.way, server.version, server.content = "good", '"2"', stream.getvalue()
    assert download(entry, tmp_path).read_bytes() == stream.getvalue() != weights


def test_more_than_the_file_is_begun_anew(server, entry, weights, tmp_path):
    part = tmp_path / INCOMING / "tiny.pth"
    part.parent.mkdir()
    part.write_bytes(bytes(2 * len(weights)))
    part.with_name("tiny.pth.tag").write_text(server.version)
    assert download(entry, tmp_path).read_bytes() == weights


@pytest.mark.parametrize(
    "content", [b"<html>too many users have viewed this file</html>", b"", b"PK\x03\x04" + bytes(99)]
)
def test_a_wrong_file_is_removed(server, entry, tmp_path, content):
    server.content = content
    with pytest.raises(ZooError) as raised:
        download(entry, tmp_path)
    assert content == b"" or "'tiny.pth' is not what 'tiny' must be, a state dict of one network" in str(raised.value)
    assert left_in(tmp_path) == []


def test_checksums(server, entry, tmp_path):
    stated = replace(entry, sha256="0" * 64)
    with pytest.raises(
        ZooError, match=r"'tiny' is not the file that it was: its SHA-256 is \w{64}, the catalogue states 0"
    ):
        download(stated, tmp_path)
    assert left_in(tmp_path) == []
    path = download(entry, tmp_path)
    torch.save({"state_dict": TinyNet(6).state_dict()}, path)
    with pytest.raises(ZooError, match="recorded the first time .*; if its authors changed it, remove the line"):
        download(entry, tmp_path)


def test_a_silent_server(server, entry, tmp_path):
    server.way = "slow"
    with pytest.raises(ZooError, match=r"cannot be fetched \(.*timed out.*By hand"):
        download(entry, tmp_path, seconds=0.2)


def test_offline_one_message_says_what_from_where_and_where_to(server, entry, weights, tmp_path):
    server.way = "missing"
    with pytest.raises(ZooError, match="answers 404"):
        download(entry, tmp_path)
    offline = replace(entry, link="http://127.0.0.1:9/tiny.pth")
    with pytest.raises(ZooError) as raised:
        download(offline, tmp_path)
    place = tmp_path / "tiny.pth"
    said = str(raised.value)
    assert "refused" in said and f"get the file of 'tiny' from {offline.link} (described at {entry.page})" in said
    assert f"put it at '{place}', and give the same command again" in said and "\n" not in said
    place.write_bytes(weights)
    assert download(offline, tmp_path) == place


@pytest.mark.parametrize("link", ["http://example.org/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "x"])
def test_other_protocols_are_refused(link, tmp_path):
    with pytest.raises(ZooError, match="is no HTTPS link"):
        fetch_https(link, tmp_path / "x")
    assert left_in(tmp_path) == []


def test_gdown(server, entry, weights, tmp_path):
    """It takes other links than Google's as well."""
    fetch_drive(entry.link, tmp_path / "tiny.pth")
    assert (tmp_path / "tiny.pth").read_bytes() == weights
    server.way = "missing"
    with pytest.raises(ZooError, match=r"cannot be fetched \(.*404"):
        fetch_drive(entry.link, tmp_path / "other.pth")
    assert not (tmp_path / "other.pth").exists()


# ---- catalogue -------------------------------------------------------------------------------------------------------


def test_entries():
    entries = catalogue()
    assert {entry.collection for entry in entries.values()} >= {"torchreid", "luperson", "pass", "oskt", "vkd"}
    links = [entry.link for entry in entries.values() if entry.link]
    assert len(set(links)) == len(links) and all(link.startswith("https://") for link in links)
    for name, entry in entries.items():
        assert entry.kind in KINDS and entry.page.startswith("https://") and entry.source and name == entry.name
        models.builder_of(entry.model)
    with pytest.raises(ZooError, match="the zoo has no 'osnet_x1_0_msmt18'; did you mean 'osnet_x1_0_msmt17'"):
        entry_named("osnet_x1_0_msmt18")
    with pytest.raises(ZooError, match="no link is known for 'oskt_vit_chains': the source names no link. By hand"):
        download("oskt_vit_chains", "/nowhere")


def test_links_are_those_that_torchreid_contains():
    folder = Path(torchreid.__file__).parent
    tables = [
        path for path in folder.rglob("*.py") if path.name in ("reid_model_factory.py", "osnet.py", "osnet_ain.py")
    ]
    if not any(path.name == "reid_model_factory.py" for path in tables):
        pytest.skip("the source distribution of torchreid has no table of its model zoo")
    known = set(re.findall(r"https://drive\.google\.com/uc\?id=[\w-]+", "".join(path.read_text() for path in tables)))
    own = {entry.link for entry in catalogue().values() if entry.collection in ("torchreid", "imagenet")}
    assert own == known


# ---- converting, and the command -------------------------------------------------------------------------------------


def command(*words: object) -> int:
    return tool("zoo").main([str(word) for word in words])


def test_the_command_from_a_file_put_there_by_hand(tmp_path, capsys):
    name, cache = "osnet_x0_25_msmt17", tmp_path / "cache"
    assert command("--cache", cache, "convert", name, "-o", tmp_path / "x.pth") == 2
    assert f"error: '{name}' is not in the cache" in capsys.readouterr().err
    cache.mkdir()
    trained = models.build("osnet_x0_25", 9)
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, cache / f"{name}.pth")
    assert command("--cache", cache, "download", name) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(cache / f"{name}.pth")
    assert command("--cache", cache, "convert", name, "-o", tmp_path / "x.pth") == 0
    load_weights(models.build("osnet_x0_25", 9), tmp_path / "x.pth")
    assert command("--cache", cache, "list", "--collection", "torchreid") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} "))
    assert line.split()[-1] == "yes"
    assert command("--cache", cache, "info", name) == 0
    told = capsys.readouterr().out
    assert entry_named(name).link in told and "licence" in told and str(cache / f"{name}.pth") in told
    assert command("info", "nothing") == 2


def test_weights_of_another_network_are_not_converted(tmp_path):
    torch.save(models.build("osnet_x0_5", 3).state_dict(), tmp_path / "osnet_x0_25_msmt17.pth")
    with pytest.raises(oskt.errors.CheckpointError, match="does not fit OSNet"):
        oskt.zoo.convert("osnet_x0_25_msmt17", tmp_path / "out.pth", folder=tmp_path)
    assert not (tmp_path / "out.pth").exists()


def fill(folder: Path, name: str) -> Path:
    for path, content in reader(name).content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def test_chains_are_converted_by_their_part(tmp_path):
    place = tmp_path / "oskt_resnet50_chains"
    fill(place / "8" / "Market1501", "official ResNet")
    output = oskt.zoo.convert("oskt_resnet50_chains", tmp_path / "c.safetensors", "8/Market1501", tmp_path)
    teacher = oskt.zoo.load_official_teacher(place / "8" / "Market1501")
    assert oskt.WeightChain.load(output, model=teacher).widths
    with pytest.raises(ZooError, match="has no part '16/MSMT17'; its parts: 8/Market1501"):
        oskt.zoo.convert("oskt_resnet50_chains", tmp_path / "d.safetensors", "16/MSMT17", tmp_path)


def test_networks_of_sets_are_converted_out_of_their_archive(tmp_path):
    place = tmp_path / "vkd_checkpoints"
    folder = fill(tmp_path / "there" / "mars" / "net", "official VKD")
    place.mkdir()
    for name in ("baseline.zip", "distilled.zip"):
        with zipfile.ZipFile(place / name, "w") as archive:
            for path in folder.rglob("*"):
                archive.write(path, path.relative_to(tmp_path / "there"))
    output = tmp_path / "set.pth"
    oskt.zoo.convert("vkd_checkpoints", output, "distilled.zip/mars/net:chk_end", tmp_path)
    assert "neck.weight" in torch.load(output, weights_only=True)["state_dict"]
    assert left_in(place) == ["baseline.zip", "distilled.zip"] and (tmp_path / conversion.UNPACKED).is_dir()
    for part, message in (
        ("x.zip/a", "has no archive 'x.zip'"),
        ("distilled.zip/x", "no part 'x'; its parts: mars/net"),
    ):
        with pytest.raises(ZooError, match=message):
            oskt.zoo.convert("vkd_checkpoints", tmp_path / "no.pth", part, tmp_path)
