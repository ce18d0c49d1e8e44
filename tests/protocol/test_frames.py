"""The frames between gateway and worker."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.protocol.frames import Form, FrameReader, Kind, frame, open_frame, parse_open, parse_reply, reply_frame

Frame = tuple[int, int, bytes]

_FRAMES = st.lists(
    st.tuples(st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=40)), min_size=1, max_size=8
)


def read(reader: FrameReader, pieces: list[bytes]) -> list[Frame]:
    return [whole for piece in pieces for whole in reader.feed(piece)]


@given(frames=_FRAMES, data=st.data())
def test_frames_survive_any_cutting_of_the_byte_stream(frames: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(frame(Kind(kind), number, payload) for kind, number, payload in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(FrameReader(), pieces) == frames


@given(frames=_FRAMES)
def test_a_frame_is_given_out_with_the_byte_that_completes_it(frames: list[Frame]) -> None:
    reader = FrameReader()
    for kind, number, payload in frames:
        sent = frame(Kind(kind), number, payload)
        assert read(reader, [sent[at : at + 1] for at in range(len(sent) - 1)]) == []
        assert read(reader, [sent[-1:]]) == [(kind, number, payload)]


def test_a_large_frame_arrives_whole_and_the_one_behind_it_too() -> None:
    payload = bytes(range(256)) * 4096
    stream = frame(Kind.DATA, 7, payload) + frame(Kind.LAST, 7)
    pieces = [stream[at : at + 65536] for at in range(0, len(stream), 65536)]
    assert read(FrameReader(), pieces) == [(Kind.DATA, 7, payload), (Kind.LAST, 7, b"")]


def test_a_head_is_length_kind_and_stream_in_little_endian() -> None:
    assert frame(Kind.DATA, 0x01020304, b"ab") == b"\x02\x00\x00\x00" + b"\x07" + b"\x04\x03\x02\x01" + b"ab"


@given(
    received=st.integers(0, 2**64 - 1),
    profile=st.integers(0, 2**32 - 1),
    path=st.sampled_from(["/api/chat", "/api/generate", "/"]),
    form=st.sampled_from(Form),
    body=st.binary(),
)
def test_an_open_frame_carries_path_time_profile_form_and_body(
    received: int, profile: int, path: str, form: Form, body: bytes
) -> None:
    [(kind, stream, payload)] = FrameReader().feed(open_frame(3, path, received, profile, body, form=form))
    assert (kind, stream) == (Kind.OPEN, 3)
    assert parse_open(payload) == (path, received, profile, form, body)


@given(status=st.integers(100, 599), body=st.binary())
def test_a_reply_carries_status_content_type_and_body(status: int, body: bytes) -> None:
    [(kind, stream, payload)] = FrameReader().feed(reply_frame(Kind.REPLY, 9, status, "application/json", body))
    assert (kind, stream) == (Kind.REPLY, 9)
    assert parse_reply(payload) == (status, b"application/json", body)


def test_a_start_is_a_reply_without_a_body() -> None:
    [(kind, _, payload)] = FrameReader().feed(reply_frame(Kind.START, 9, 200, "application/x-ndjson"))
    assert kind == Kind.START
    assert parse_reply(payload) == (200, b"application/x-ndjson", b"")


def test_an_open_frame_that_is_too_short_is_an_error() -> None:
    with pytest.raises(struct.error):
        parse_open(b"\x00")
