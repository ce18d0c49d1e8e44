from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Barrier, Thread

import pytest

from vllama.errors import RequestError, StoreError
from vllama.store.blobs import GRACE_SECONDS, Blobs, parse_digest

DATA = b"hello blob"
SHA256 = hashlib.sha256(DATA).hexdigest()
DIGEST = f"sha256:{SHA256}"


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "blobs").iterdir())


def upload(blobs: Blobs, *pieces: bytes) -> None:
    sha256 = hashlib.sha256(b"".join(pieces)).hexdigest()
    with blobs.receive(sha256, f"sha256:{sha256}") as receiving:
        for piece in pieces:
            receiving.write(piece)
        receiving.finish()


def grow_old(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_blob_lies_under_its_checksum(blobs: Blobs, tmp_path: Path) -> None:
    assert not blobs.holds(SHA256)
    upload(blobs, b"hello ", b"blob")
    assert blobs.holds(SHA256)
    assert files(tmp_path) == [f"sha256-{SHA256}"]
    assert blobs.path(SHA256).read_bytes() == DATA


def test_another_file_than_announced_is_refused_in_ollamas_words_and_leaves_nothing(
    blobs: Blobs, tmp_path: Path
) -> None:
    with blobs.receive("0" * 64, f"sha256:{'0' * 64}") as receiving:
        receiving.write(DATA)
        with pytest.raises(RequestError) as caught:
            receiving.finish()
    assert str(caught.value) == f'digest mismatch, expected "sha256:{"0" * 64}", got "{DIGEST}"'
    assert files(tmp_path) == []


def test_an_upload_that_ends_early_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    with blobs.receive(SHA256, DIGEST) as receiving:
        receiving.write(DATA)
    assert files(tmp_path) == []


def test_two_may_upload_the_same_blob_at_once(blobs: Blobs, tmp_path: Path) -> None:
    barrier = Barrier(2)

    def send() -> None:
        with blobs.receive(SHA256, DIGEST) as receiving:
            receiving.write(DATA)
            barrier.wait(30)
            receiving.finish()

    threads = [Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(tmp_path) == [f"sha256-{SHA256}"]
    assert blobs.path(SHA256).read_bytes() == DATA


_HALF_AN_UPLOAD = """
import signal, sys
from pathlib import Path
from vllama.store.blobs import Blobs
with Blobs(Path(sys.argv[1])).receive("0" * 64, "sha256:…") as upload:
    upload.write(b"half of it")
    print("received", flush=True)
    signal.pause()
"""


def test_a_kill_leaves_no_name_and_what_it_leaves_goes_with_the_next_upload_or_start(
    blobs: Blobs, tmp_path: Path
) -> None:
    def next_upload() -> None:
        upload(blobs, DATA)

    for clean_up in (next_upload, blobs.prune):
        with subprocess.Popen(
            [sys.executable, "-c", _HALF_AN_UPLOAD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as receiver:
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "received\n"
            clean_up()
            (temporary,) = (tmp_path / "blobs").glob("upload-*")  # its receiver lives: it is not touched
            receiver.send_signal(signal.SIGKILL)
        assert temporary.exists()
        clean_up()
        assert files(tmp_path) == [f"sha256-{SHA256}"]


def test_a_blob_that_nothing_was_made_of_goes_after_an_hour(blobs: Blobs, tmp_path: Path) -> None:
    upload(blobs, DATA)
    upload(blobs, b"another")
    grow_old(blobs.path(SHA256), GRACE_SECONDS + 60)
    blobs.prune()
    assert not blobs.holds(SHA256)
    assert len(files(tmp_path)) == 1


def test_a_blob_that_is_asked_for_stays_for_another_hour(blobs: Blobs) -> None:
    upload(blobs, DATA)
    grow_old(blobs.path(SHA256), GRACE_SECONDS + 60)
    assert blobs.holds(SHA256)
    blobs.prune()
    assert blobs.holds(SHA256)


def test_a_store_without_blobs_is_pruned_without_making_any(blobs: Blobs, tmp_path: Path) -> None:
    blobs.prune()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=f"cannot store blob {DIGEST}: .*No space left"):
        upload(blobs, DATA)
    assert files(tmp_path) == []


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("in the way")
    with pytest.raises(StoreError, match=f"cannot store blob {DIGEST}"):
        Blobs(tmp_path).receive(SHA256, DIGEST)


@pytest.mark.parametrize("text", [DIGEST, f"sha256-{SHA256}", f"sha256:{SHA256.upper()}"])
def test_a_digest_is_read_in_all_its_spellings(text: str) -> None:
    assert parse_digest(text) == SHA256


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:12", f"md5:{SHA256}", f"sha256:{SHA256}0", f"sha256:../{SHA256[3:]}", SHA256]
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"^invalid digest format$"):
        parse_digest(text)
