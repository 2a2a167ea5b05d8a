"""Text from a facility: no character of it acts where it is shown."""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefect_psik.cli.app import passed_on
from prefect_psik.exceptions import FacilityError, JobError, ScriptFailed
from prefect_psik.jobs.lifecycle import error_of
from prefect_psik.jobs.report import Reporter, job_card
from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobResult, JobState
from prefect_psik.plain_text import code_block, markdown, plain, plain_values, printable
from prefect_psik.session.poller import Update
from tests.unit.reports import judge
from tests.unit.test_models_exceptions import RESULT

ACTING = "\0\x07\x08\x1b\x7f\x85\x9b\u200f\u202e\u2028\u2066\ud800"
HANDLE = JobHandle(prefix="/p", stamp="1", key="k", name="recon")
HTML = MarkdownIt("commonmark", {"html": True}).enable("table")
#: Tags that our own cards have.
OWN_TAGS = {"h2", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "pre", "code", "ul", "li"}


def acts(text: str) -> list[str]:
    """The characters of a text that do something instead of being seen."""
    return [
        character
        for character in text
        if (ord(character) < 0x20 and character not in "\t\n")
        or 0x7F <= ord(character) < 0xA0
        or 0xD800 <= ord(character) < 0xE000
        or character in "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    ]


@given(st.text(alphabet=st.characters()) | st.text(alphabet=ACTING + "ab\r\n\t é"))
def test_nothing_acts_in_plain_text_and_nothing_else_is_changed(text: str) -> None:
    shown = plain(text)
    assert acts(shown) == []
    assert plain(shown) == shown
    if not acts(text):
        assert shown == text
    shown.encode()


def test_what_was_there_can_be_seen() -> None:
    assert plain("a\0b\x1b[31mc\x7f\x9b\u202e\r\nd\r") == "a␀b␛[31mc␡��\nd␍"
    assert plain_values({"a\0": ["b\0", {"c": "\0"}, 5, None]}) == {"a␀": ["b␀", {"c": "␀"}, 5, None]}


def tags(text: str) -> set[str]:
    return set(re.findall(r"<(\w+)", HTML.render(text)))


@given(st.text(alphabet="ab1 .)(][!<>/=\"'`*_~#+-|\\&;:\n\t" + "\0\x1b"))
def test_no_markup_acts_in_a_line_or_a_cell(text: str) -> None:
    assert tags(f"{markdown(text)}\n") <= {"p"}
    table = HTML.render(f"| | |\n|---|---|\n| name | {markdown(text)} |\n")
    assert table.count("<td>") == 2
    assert set(re.findall(r"<(\w+)", table)) <= OWN_TAGS - {"h2", "ul", "pre", "code"}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("n[1-2] of a_b", "n[1-2] of a_b"),
        ("[a](b) [c]: d", r"[a\](b) [c\]: d"),
        ("_a_ *b* `c` ~d~ e|f", r"\_a\_ \*b\* \`c\` \~d\~ e\|f"),
        ("<b> & \\", "&lt;b&gt; &amp; \\\\"),
        ("# a", r"\# a"),
        ("- a - b", r"\- a - b"),
        ("12. a", "1&#50;. a"),
        ("7) a", "&#55;) a"),
        ("1.5 GB", "1.5 GB"),
        ("a\n\n  b\0\r\nc", "a b␀ c"),
        (5, "5"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text: object, written: str) -> None:
    assert markdown(text) == written


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("a\n b", "```\na\n b\n```"),
        ("``` a `", "````\n``` a `\n````"),
        ("a ````` b", "``````\na ````` b\n``````"),
        ("a\0", "```\na␀\n```"),
    ],
)
def test_block_keeps_its_lines_in_a_fence_longer_than_any_of_theirs(text: str, block: str) -> None:
    assert code_block(text) == block


@given(st.text(alphabet="`~ab<>\n "))
def test_no_line_ends_the_block_that_it_is_in(text: str) -> None:
    assert tags(f"{code_block(text)}\n\nafter\n") == {"pre", "code", "p"}


def test_the_card_of_a_hostile_job_has_no_link_image_or_tag() -> None:
    card = job_card(
        JobResult(
            handle=HANDLE.model_copy(update={"name": "[click](javascript:alert(1)) <img src=x onerror=alert(1)>"}),
            state=JobState.completed,
            message="ok <script>alert(2)</script> ![](http://evil/x.png)",
            nodes=2,
            node_list="n1 | <b>x</b>\n\n# heading",
            stdout="~~~\n```\n````\n<script>\n\n```js\n",
            stderr="x\n```\n# out of the fence\n",
            native_id="5 | [a](javascript:alert(3))",
            warnings=["- one\n# two \x1b[2J"],
        )
    )
    assert tags(card) <= OWN_TAGS
    assert acts(card) == []
    rendered = HTML.render(card)
    assert rendered.count("<h2>") == 1
    assert "<script>alert(2)" in rendered.replace("&lt;", "<").replace("&gt;", ">"), "it is shown as it is"


def test_errors_and_states_are_plain_and_what_is_kept_is_not() -> None:
    failed = RESULT.model_copy(
        update={"state": JobState.failed, "cause": FailureCause.script, "stderr": "read\0 error\x1b[2J\n"}
    )
    error = error_of(failed)
    assert isinstance(error, ScriptFailed)
    assert "read␀ error␛[2J" in str(error)
    assert error.result is not None
    assert error.result.stderr == "read\0 error\x1b[2J\n"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.message) == (str(error), str(error))
    assert str(FacilityError("said \u202e")) == "said �"
    assert isinstance(error, JobError)


@pytest.mark.parametrize(
    "facts",
    [
        {"status": "1,1,queued,7\n2,1,active,\n", "native_id": "7\x1b", "nodes": "2 n1\0", "alive": True},
        {
            "status": "1,1,queued,7\n2,1,active,\n3,1,failed,9\n",
            "alive": False,
            "tails": {"console": f"a {ACTING[:-1]}"},
        },
        {"status": f"1,1,queued,7\n2,1,active,\n3,1,failed,{ACTING[:2]}\n", "alive": False},
    ],
)
def test_a_status_is_plain(facts: dict[str, object]) -> None:
    status = judge({"type": "local", "now": 5.0, **facts}, HANDLE)
    assert acts(status.model_dump_json()) == []
    assert acts(f"{status.message}{status.reason}{status.node_list}{status.handle.native_id}") == []


def test_log_lines_are_plain(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "prefect_psik"):
        status = judge({"type": "local", "status": "1,1,queued,7\n", "alive": True}, HANDLE)
        Reporter(HANDLE).tell(Update(status=status, logs={"stdout": f"a{ACTING}\r\nb\n"}))
    assert acts("".join(caplog.messages)) == []
    assert "recon stdout | b" in caplog.messages
    [line] = [record for record in caplog.records if "stdout | a" in record.message]
    assert line.__dict__["psik_line"] == f"a{ACTING}\r", "the command line passes it on as it is"


def test_a_terminal_obeys_nothing_and_a_pipe_gets_every_byte() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert passed_on("a\x1b]0;title\x07\n", Terminal()) == "a␛]0;title␇\n"
    assert passed_on("a\x1b]0;title\x07\n", io.StringIO()) == "a\x1b]0;title\x07\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scan é☃ 1.h5", "scan é☃ 1.h5"),
        (os.fsdecode(b"scan\xe9.h5"), r"scan\xe9.h5"),
        ("new\nline\t\x1b[31m", r"new\nline\t\x1b[31m"),
        ("\ud800\u202e", r"\ud800\u202e"),
        (Path("/p/a\x00b"), r"/p/a\x00b"),
    ],
)
def test_a_name_is_one_line_that_can_be_stored_and_printed(name: object, text: str) -> None:
    assert printable(name) == text
    assert text.encode().decode() == text
