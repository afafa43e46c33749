"""What a demo replica says: limits, stop sequences, and that cutting it up loses nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.demo.speech import Ask, Speech, pieces


def said(ask: Ask) -> tuple[Speech, list[str]]:
    speech = Speech("a", ask)
    return speech, list(speech)


@given(st.text())
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_it_is_honest_and_quotes_the_prompt() -> None:
    speech, items = said(Ask("tell me a story"))
    text = "".join(items)
    assert text.startswith("This is gatewayd's demo replica a. No language model runs here")
    assert text.endswith("You sent 4 words: “tell me a story”")
    assert speech.finish_reason == "stop"
    assert speech.tokens == len(pieces(text))
    assert speech.ask.prompt_tokens == 4


def test_a_long_prompt_is_quoted_in_part() -> None:
    _, items = said(Ask(" ".join(["word"] * 100)))
    assert "".join(items).endswith("” and 60 more.")


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_tokens_ends_it(limit: int) -> None:
    speech, items = said(Ask("hello", max_tokens=limit))
    assert speech.tokens == limit
    assert speech.finish_reason == "length"
    assert "".join(items) == "".join(pieces("This is gatewayd's demo replica a. No")[:limit])


def test_ignore_eos_goes_on_to_the_limit() -> None:
    speech, _ = said(Ask("hello", max_tokens=500, ignore_eos=True))
    assert (speech.tokens, speech.finish_reason) == (500, "length")


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("replica",), "This is gatewayd's demo "),
        ((" demo replica",), "This is gatewayd's"),  # across pieces
        (("never", "is"), "Th"),  # inside a word
        (("T",), ""),
        (("is gatewayd", "This"), ""),  # the earlier one counts
    ],
)
def test_stop_sequences_are_not_sent(stop: tuple[str, ...], text: str) -> None:
    speech, items = said(Ask("hello", stop=stop))
    assert "".join(items) == text
    assert speech.finish_reason == "stop"
    assert speech.matched in stop


def test_what_only_looked_like_a_stop_is_sent() -> None:
    speech, items = said(Ask("hello", stop=("gatewayd's demo replica b",)))
    assert "".join(items).endswith("You sent 1 words: “hello”")
    assert speech.matched is None


@given(
    prompt=st.text(alphabet="ab ", max_size=12),
    stop=st.text(alphabet="ab “:", min_size=1, max_size=5),
    limit=st.one_of(st.none(), st.integers(1, 40)),
)
def test_a_stream_never_shows_any_of_a_stop(prompt: str, stop: str, limit: int | None) -> None:
    whole = "".join(said(Ask(prompt, max_tokens=limit))[1])
    speech, items = said(Ask(prompt, max_tokens=limit, stop=(stop,)))
    assert "".join(items) == whole.split(stop)[0]
    assert (speech.matched == stop) == (stop in whole)
