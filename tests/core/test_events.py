from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.events import EVENT_MAX, EventReader, EventTooLongError


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata:b\n\n", ["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", ["a", "b", "c"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b": comment\n\nevent: x\nid: 1\ndata: a\n\n", ["a"]),
        (b"data:  two spaces\n\n", [" two spaces"]),
        (b"data: unfinished", []),
        (b"data: unfinished\n", []),
        (b"data\n\n", [""]),
        ("data: ä\n\n".encode(), ["ä"]),
        (b"data: \xff\n\n", ["\N{REPLACEMENT CHARACTER}"]),
        (b"", []),
    ],
)
@given(data=st.data())
def test_events_wherever_the_stream_is_cut(
    stream: bytes, events: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    reader = EventReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == events


@pytest.mark.parametrize("line_end", [b"", b"\n"])
def test_an_event_that_does_not_end_is_not_kept(line_end: bytes) -> None:
    reader = EventReader()
    piece = b"data: " + b"x" * (EVENT_MAX // 2) + line_end
    assert reader.feed(piece) == []
    with pytest.raises(EventTooLongError):
        reader.feed(piece)
