"""Files that are no gateway file at all, and what YAML makes of innocent words."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_text import Load, Problems

from gatewayd.config.errors import ConfigError
from gatewayd.config.load import load_config


def only_problem(path: str) -> str:
    with pytest.raises(ConfigError) as info:
        load_config(path, {})
    (problem,) = info.value.problems
    return str(problem)


def test_a_missing_file() -> None:
    assert only_problem("none.yaml") == "none.yaml: cannot be read: No such file or directory"


def test_a_directory(tmp_path: Path) -> None:
    assert only_problem(str(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"


def test_bytes_that_are_not_text() -> None:
    Path("g.yaml").write_bytes(b"name: a\ndomain: caf\xe9\n")
    assert only_problem("g.yaml") == "g.yaml:2: is not UTF-8 text (byte 0xe9)"


def test_a_file_that_never_ends() -> None:
    assert only_problem("/dev/zero") == "/dev/zero: is longer than 16 MiB"


def test_a_path_that_is_none() -> None:
    assert only_problem("a\0b") == "a\\x00b: cannot be read: not a path"


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", "---\n"])
def test_an_empty_file(problems: Problems, text: str) -> None:
    assert problems(text) == [
        " the file is empty; the smallest useful one sets `domain` and `services`"
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- a\n- b\n", "1: expected keys such as `domain:` at the top level, found a list"),
        ("hello\n", "1: expected keys such as `domain:` at the top level, found a single value"),
        (
            "name: a\n\tdomain: b\n",
            "2: invalid YAML: found character '\\t' that cannot start any token; "
            "indent with spaces, not with tabs",
        ),
        (
            "name: a\nlisten: {http: 0.0.0.0:80\nworkers: 1\n",
            "3: invalid YAML: expected ',' or '}', but got ':' "
            "(while parsing a flow mapping of line 2)",
        ),
        (
            "name: a\n  domain: b\n",
            "2: invalid YAML: mapping values are not allowed here; "
            "a value that contains `: ` stands in quotes; is a line indented too far?",
        ),
        (
            "name: my: gateway\n",
            "1: invalid YAML: mapping values are not allowed here; "
            "a value that contains `: ` stands in quotes; is a line indented too far?",
        ),
        (
            "domain: *.example.com\n",
            "1: invalid YAML: expected alphabetic or numeric character, but found '.'; "
            "a value that begins with `*` stands in quotes",
        ),
        (
            "listen:\n  http: [::]:8080\n",
            "2: invalid YAML: expected the node content, but found ':'; "
            "an address in brackets stands in quotes",
        ),
        (
            "log: {access: ${ACCESS}}\n",
            "1: invalid YAML: expected ',' or '}', but got '{'; "
            "${...} stands in quotes between braces or brackets",
        ),
        ("name: 'a\n", "2: invalid YAML: found unexpected end of stream (while scanning"),
        ("name: a\n---\nname: b\n", "2: invalid YAML: a second document begins here"),
        ("name: a\x00b\n", "1: invalid YAML: character U+0000 is not allowed"),
        ("name: &a [*a]\n", "1: name[0]: an alias cannot stand inside of what it names"),
        ("name: *nobody\n", "1: invalid YAML: found undefined alias 'nobody'"),
        ("name: !env NAME\n", "1: name: the YAML tag `!env` means nothing here"),
        ("workers: !!int four\n", "1: workers: expected a whole number after the tag"),
        ("[" * 3000, " invalid YAML: nested too deeply"),
    ],
)
def test_what_is_not_yaml(problems: Problems, text: str, line: str) -> None:
    assert problems(text)[0].startswith(line)


def test_aliases_do_not_explode(problems: Problems) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 9):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    (line,) = problems("\n".join(lines) + "\n")
    assert line.endswith("more than 200000 values")


def test_duplicate_keys(problems: Problems) -> None:
    text = """
        name: a
        listen:
          http: 0.0.0.0:80
          http: 0.0.0.0:81
        name: b
    """
    assert problems(text) == [
        "4: listen.http: this key stands on line 3 already",
        "5: name: this key stands on line 1 already",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "name: no\n",
            "1: name: expected a string, found the boolean `no`; "
            'YAML reads no as false: write "no"',
        ),
        (
            "name: On\n",
            '1: name: expected a string, found the boolean `On`; YAML reads On as true: write "On"',
        ),
        (
            "name: true\n",
            '1: name: expected a string, found the boolean `true`; write "true"',
        ),
        ("name: 12\n", '1: name: expected a string, found the number `12`; write "12"'),
        ("name: 1.10\n", '1: name: expected a string, found the number `1.10`; write "1.10"'),
        (
            "name: 0123\n",
            "1: name: expected a string, found the number `0123`; "
            'YAML reads 0123 in base 8, as 83: write "0123"',
        ),
        (
            "name: 12:30\n",
            "1: name: expected a string, found the number `12:30`; "
            'YAML reads 12:30 in base 60, as 750: write "12:30"',
        ),
        (
            "limits: {keepalive_timeout: 1:30}\n",
            "1: limits.keepalive_timeout: expected a duration such as 250ms, 5s, 10m or 1h, "
            "found the number `1:30`; YAML reads 1:30 in base 60, as 90: write 90 if that is meant",
        ),
        (
            "limits: {headers: 0100}\n",
            "1: limits.headers: expected a whole number of at least 1, "
            "found the number `0100`; YAML reads 0100 in base 8, as 64: write 64 if that is meant",
        ),
        ("on: 1\n", '1: the key `on` is not a string for YAML; write "on"'),
        ("name: a\n8080: 1\n", '2: the key `8080` is not a string for YAML; write "8080"'),
        ("? [a]\n: b\n", "1: a key is a string, found a list or a table"),
        ("name: ~\n", None),
        ("name: ''\n", "1: name: expected a string, found an empty string"),
        ('name: "a\\tb"\n', "1: name: expected a string without control characters"),
    ],
)
def test_what_yaml_makes_of_words(problems: Problems, load: Load, text: str, line: str) -> None:
    if line is None:
        assert load(text)
    else:
        assert problems(text) == [line]


def test_names_that_look_like_dates_are_names(load: Load) -> None:
    assert load("name: 2026-01-01\n").name == "2026-01-01"


def test_off_is_a_word_where_it_is_one(load: Load) -> None:
    for word in ("off", "'off'", "OFF", "'${X:-off}'"):
        assert load(f"log: {{access: {word}}}\n").log.access == "off"


def test_anchors_and_merges_work(load: Load) -> None:
    config = load(
        """
        domain: example.com
        services:
          - &a
            name: a
            timeouts: &t {connect: 1s, idle: 2s}
            balance: random
          - <<: *a
            name: b
            timeouts:
              <<: [*t, {idle: 9s, total: 1h}]
              connect: 3s
        """
    )
    a, b = config.services
    assert (a.name, b.name, b.balance) == ("a", "b", "random")
    assert (b.timeouts.connect, b.timeouts.idle, b.timeouts.total) == (3, 2, 3600)


def test_a_merge_of_nothing(problems: Problems) -> None:
    text = """
        listen:
          <<: http
          metrics: x
    """
    assert problems(text) == [
        "2: listen.<<: expected a table to merge",
        "3: listen.metrics: expected host:port or unix:/path, found `x`",
    ]


def test_lines_count_in_files_of_other_systems() -> None:
    Path("g.yaml").write_bytes(b"\xef\xbb\xbfname: a\r\n\r\nworkers: x\r\n")
    assert only_problem("g.yaml").startswith("g.yaml:3: workers: expected auto")


def test_what_was_found_does_not_reach_the_terminal_raw(problems: Problems) -> None:
    (line,) = problems('project: "\\e[31m\\uD800"\n')
    assert line.isprintable()
