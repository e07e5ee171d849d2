"""Data sets of the hub: real code against a hub of a few lines that runs beside the tests."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

from harness.api import DataContext, DataError, DatasetCard
from harness.plugins import load_plugins
from harness_datasets.hub import load

COMMIT = "c0ffee" + 34 * "0"
PLUGIN = """
from harness import DatasetCard, hookimpl

@hookimpl
def register_datasets(register):
    register("squares", "harness_datasets.hub:load", card=DatasetCard(
        "Squares.", 10, (3, 8, 8), {"train": 30, "test": 200}, hub_id="someone/squares",
        files={"train": "data/train-*.parquet", "test": "data/test-*.parquet"},
        access="accept its terms and log in with 'hf auth login'",
    ))
"""
SUITE = """
name = "squares"
version = 1
[data]
name = "squares"
[threat]
norm = "linf"
epsilons = ["8/255"]
headline = "8/255"
[[attacks]]
name = "fgsm"
[[models]]
name = "cnn/digits"
[recipes.standard]
epochs = 1
"""


class Hub:
    """What the hub's client asks of a hub, for one repository of files in a folder."""

    def __init__(self, folder):
        self.folder, self.asked, self.gated, self.broken = folder, [], False, False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request, *, body):
        path = unquote(urlsplit(request.path).path)
        self.asked.append((request.command, path, request.headers.get("Range")))
        if self.gated:
            return self.send(request, b"", 403, {"X-Error-Code": "GatedRepo"})
        if path.startswith("/api/datasets/someone/squares/tree/"):
            return self.send(request, json.dumps(self.listed(request.path)).encode())
        if "/resolve/" not in path and "someone/squares" not in path:
            return self.send(request, b"{}", 404)
        if path.startswith("/api/datasets/someone/squares"):
            names = [{"rfilename": p.relative_to(self.folder).as_posix()} for p in self.files()]
            content = {"id": "someone/squares", "sha": COMMIT, "siblings": names}
            return self.send(request, json.dumps(content).encode())
        file = self.folder / path.partition(f"/resolve/{COMMIT}/")[2]
        content = file.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        first = int((request.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        last = (request.headers.get("Range") or "-").rpartition("-")[2]
        part = content[first : int(last) + 1 if last else None]
        if self.broken and body:
            part = part[: len(part) // 2]
            headers["Content-Length"] = str(len(content) - first)
        if "Range" in request.headers:
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return self.send(request, part, 206 if "Range" in request.headers else 200, headers, body)

    def send(self, request, content, code=200, headers=(), body=True):
        request.send_response(code)
        sent = {"Content-Length": str(len(content)), "Content-Type": "application/json"}
        for name, value in {**sent, **dict(headers)}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(content)

    def listed(self, path):
        """The files of a folder, or the one folder of the root."""
        is_root = urlsplit(path).path.endswith(COMMIT) and "recursive=true" not in path.lower()
        if not is_root:
            return [self.described(file) for file in self.files()]
        return [{"type": "directory", "path": "data", "oid": 40 * "0"}]

    def files(self):
        return sorted(self.folder.rglob("*.parquet"))

    def described(self, path):
        content = path.read_bytes()
        return {
            "type": "file",
            "path": path.relative_to(self.folder).as_posix(),
            "size": len(content),
            "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
            "lfs": {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 1,
            },
        }


def write_split(folder, name, counts):
    """Parquet files of squares, numbered as the hub numbers them."""
    features = Features({"image": Image(), "label": ClassLabel(names=[str(n) for n in range(10)])})
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(counts):
        rows = {
            "image": [
                Picture.new("RGB", (8, 8), (place % 256, number, 9)) for place in range(count)
            ],
            "label": [place % 10 for place in range(count)],
        }
        path = folder / f"{name}-{number:05d}-of-{len(counts):05d}.parquet"
        Dataset.from_dict(rows, features=features).to_parquet(path)


@pytest.fixture
def hub(tmp_path):
    write_split(tmp_path / "remote" / "data", "train", [30])
    write_split(tmp_path / "remote" / "data", "test", [120, 80])
    hub = Hub(tmp_path / "remote")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def fetching(tmp_path, harness, hub):
    """Runs a command over the squares, against the hub beside it."""
    (tmp_path / "squares.py").write_text(PLUGIN)
    (tmp_path / "squares.toml").write_text(SUITE)

    def call(command, *arguments):
        return harness(
            command,
            "--suite",
            "squares.toml",
            "--plugin",
            "squares.py",
            *arguments,
            HF_ENDPOINT=hub.url,
            HF_HOME=str(tmp_path / "home"),
            HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HARNESS_CACHE=str(tmp_path / "cache"),
        )

    return call


def test_fetch_downloads_what_the_suite_needs_and_no_more(fetching, tmp_path):
    done = fetching("fetch", "--data", "copies", "--json")

    (split,) = json.loads(done.out)["splits"]
    assert (split["split"], split["images"], split["board"]) == ("test", 200, "squares")
    names = [path.name for path in sorted((tmp_path / "copies" / "squares").rglob("*.parquet"))]
    assert names == ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"]


def test_fetch_again_downloads_nothing(fetching, hub):
    fetching("fetch", "--train")
    hub.asked.clear()

    again = fetching("fetch", "--train", "--json")

    assert [split["images"] for split in json.loads(again.out)["splits"]] == [200, 30]
    assert [path for verb, path, _ in hub.asked if verb == "GET" and "/resolve/" in path] == []


def test_fetched_images_are_found_without_a_network(fetching):
    fetching("fetch", "--data", "copies")

    planned = fetching("plan", "--data", "copies", "--json")

    assert json.loads(planned.out)["rows"][0]["images"] == 200


def test_a_broken_connection_is_told_and_the_next_fetch_goes_on(fetching, hub, tmp_path):
    hub.broken = True
    first = fetching("fetch", "--data", "copies")
    hub.broken = False

    second = fetching("fetch", "--data", "copies")

    assert first.code == 1
    assert "the hub cannot be asked" in first.err
    assert second.code == 0, second.err


def test_fetch_goes_on_where_one_of_several_files_is_there(fetching, hub, tmp_path):
    (tmp_path / "copies" / "squares" / "data").mkdir(parents=True)
    first = hub.files()[0]
    (tmp_path / "copies" / "squares" / "data" / first.name).write_bytes(first.read_bytes())

    done = fetching("fetch", "--data", "copies", "--json")

    assert json.loads(done.out)["splits"][0]["images"] == 200
    assert [
        path for verb, path, _ in hub.asked if verb == "GET" and path.endswith(first.name)
    ] == []


def test_a_copy_of_ones_own_is_never_overwritten(fetching, tmp_path):
    write_split(tmp_path / "copies" / "squares" / "data", "test", [100, 100])
    before = [path.read_bytes() for path in sorted((tmp_path / "copies").rglob("*.parquet"))]

    done = fetching("fetch", "--data", "copies")

    assert done.code == 1
    assert "another copy, which is left alone" in done.err
    after = [path.read_bytes() for path in sorted((tmp_path / "copies").rglob("*.parquet"))]
    assert after == before


def test_a_gated_data_set_says_how_to_get_in(fetching, hub):
    hub.gated = True

    done = fetching("fetch")

    assert done.code == 1
    assert "accept its terms and log in with 'hf auth login'" in done.err


@pytest.mark.slow
def test_a_few_images_are_streamed_and_not_kept(fetching, tmp_path):
    done = fetching("run", "--limit", "4", "--model", "cnn/digits", "--json")

    row = json.loads(done.out)["rows"][0]
    assert row["clean_accuracy"]["n"] == 4
    assert "limited" in row["flags"]
    kept = {path.name.partition("-")[0] for path in (tmp_path / "home").rglob("*.parquet")}
    assert kept == {"train"}


CARD = DatasetCard(
    "Squares.",
    10,
    (3, 8, 8),
    {"test": 200},
    hub_id="someone/squares",
    files={"test": "data/test-*.parquet"},
)


@pytest.mark.parametrize("folder", ["squares", "someone/squares", "someone--squares"])
def test_local_copies_are_found_under_the_names_that_people_give(tmp_path, folder):
    write_split(tmp_path / folder / "data", "test", [3, 2])

    found = load(DataContext("test", CARD, tmp_path))

    assert found.count == 5
    assert Path(found.where) == tmp_path / folder / "data"


def test_a_missing_file_among_several_is_named(tmp_path):
    write_split(tmp_path / "squares" / "data", "test", [3, 2])
    (tmp_path / "squares" / "data" / "test-00001-of-00002.parquet").unlink()

    with pytest.raises(DataError, match="1 of 2 files are missing, the first is number 00001"):
        load(DataContext("test", CARD, tmp_path))


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    write_split(tmp_path / "squares" / "data", "test", [3])
    next(tmp_path.rglob("*.parquet")).write_bytes(b"<html>quota exceeded</html>")

    with pytest.raises(DataError, match="not Parquet, or damaged"):
        load(DataContext("test", CARD, tmp_path))


def test_offline_says_where_it_looked(tmp_path):
    with pytest.raises(DataError, match=r"no data/test-\*.parquet in .*squares.* --offline"):
        load(DataContext("test", CARD, tmp_path, is_offline=True))


def test_another_file_is_another_identity(tmp_path):
    write_split(tmp_path / "squares" / "data", "test", [3])
    before = load(DataContext("test", CARD, tmp_path)).identity
    write_split(tmp_path / "squares" / "data", "test", [4])

    assert load(DataContext("test", CARD, tmp_path)).identity != before


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet", "imagenet"])
def test_the_cards_of_the_hub_know_as_many_labels_as_classes(name):
    card = load_plugins().find("datasets", name).card

    assert len(card.label_names) == len(set(card.label_names)) == card.num_classes
