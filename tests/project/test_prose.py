"""The prose lint: its patterns, its extraction of prose, and its gate."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Final

import pytest

from tests.prose import Checked, Hit, check_text, files, hits_of, problems
from tests.prose.__main__ import main
from tests.prose.extract import Kind, Piece, is_sentence, pieces
from tests.prose.patterns import PATTERNS, Pattern

pytestmark = pytest.mark.once

CORPORA: Final = Path(__file__).parents[1] / "prose"


def corpus(name: str) -> list[str]:
    lines = (CORPORA / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


MUST_FAIL: Final = corpus("must_fail")
MUST_PASS: Final = corpus("must_pass")


def piece(line: str) -> Piece:
    """Return a line of a corpus as the lint would extract it."""
    if line.startswith("test_"):
        return Piece("test name", 1, line.removeprefix("test_").replace("_", " "))
    if line.startswith("error: "):
        return Piece("error", 1, line.removeprefix("error: "))
    return Piece("paragraph", 1, line)


def names(line: str) -> set[str]:
    return {hit.pattern.name for hit in hits_of(piece(line))}


def found(path: str, text: str, kind: Kind | None = None) -> list[tuple[int, str]]:
    """Return line and text of the pieces that a file consists of."""
    extracted = pieces(Path(path), textwrap.dedent(text).lstrip("\n"))
    return sorted((piece.line, piece.flat) for piece in extracted if kind in (None, piece.kind))


class TestPatterns:
    def test_each_bad_sentence_is_caught(self) -> None:
        assert [line for line in MUST_FAIL if not names(line)] == []

    def test_good_sentences_pass(self) -> None:
        assert {line: names(line) for line in MUST_PASS if names(line)} == {}

    def test_each_pattern_is_necessary(self) -> None:
        caught_by_one = {name for line in MUST_FAIL if len(names(line)) == 1 for name in names(line)}
        assert {pattern.name for pattern in PATTERNS} - caught_by_one == set()

    def test_prefilter_hides_no_match(self) -> None:
        for pattern in PATTERNS:
            unfiltered = dataclasses.replace(pattern, contains=())
            for line in map(piece, MUST_FAIL + MUST_PASS):
                assert any(pattern.matches(line)) == any(unfiltered.matches(line)), (pattern.name, line.text)

    def test_names_are_unique(self) -> None:
        assert len({pattern.name for pattern in PATTERNS}) == len(PATTERNS)

    @pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
    def test_explanation_is_one_sentence(self, pattern: Pattern) -> None:
        assert pattern.why[0].isupper()
        assert pattern.why.endswith(".")
        assert ". " not in pattern.why

    def test_corpora_are_large_and_without_duplicates(self) -> None:
        assert len(set(MUST_FAIL)) == len(MUST_FAIL) >= 120
        assert len(set(MUST_PASS)) == len(MUST_PASS) >= 150

    def test_kind_limits_a_pattern(self) -> None:
        text = "what is left is sent"
        assert [hit.pattern.name for hit in hits_of(Piece("paragraph", 1, text))] == ["What …"]
        assert [hit.pattern.name for hit in hits_of(Piece("test name", 1, text))] == ["start of a test name"]


class TestPython:
    def test_docstrings_are_paragraphs_without_code(self) -> None:
        text = '''
            """Send it.

            The `queue` is
            closed.

                code(here)

            - One thing
              and more.
            """

            class A:
                """A class."""

                def f(self):
                    """Return it."""
        '''
        assert found("lambda_tasks/a.py", text, "docstring") == [
            (1, "Send it."),
            (3, "The _ is closed."),
            (8, "One thing and more."),
            (13, "A class."),
            (16, "Return it."),
        ]

    def test_consecutive_comments_are_one_paragraph(self) -> None:
        text = """
            # Sent after the commit,
            # and deleted.
            x = "# not a comment"  # Seconds.
            #: An attribute.
            y = 1  # noqa: E501
        """
        assert found("tests/a.py", text) == [
            (1, "Sent after the commit, and deleted."),
            (3, "Seconds."),
            (4, "An attribute."),
        ]

    def test_strings_are_sentences_with_placeholders(self) -> None:
        text = """
            def f(x):
                raise ValueError(
                    f"The value {x!r} is not "
                    "a whole number."
                )

            log("The %s was sent to %s after %.1f seconds", x)
            short = "three words only"
        """
        assert found("lambda_tasks/a.py", text, "error") == [(3, "The value _ is not a whole number.")]
        assert found("lambda_tasks/a.py", text, "string") == [(7, "The _ was sent to _ after _ seconds")]

    def test_strings_of_tests_are_data(self) -> None:
        assert found("tests/a.py", 'x = "This is a sentence with words."') == []

    @pytest.mark.parametrize(
        "text",
        [
            "SELECT id FROM record WHERE claim IS NULL",
            "UPDATE lambda_tasks_taskrecord SET status = 'SUCCESS' WHERE id = 1",
            r"(?P<name>\w+) is not a (?:string|number) of it",
            "def test_it(): return a and b or c",
            "from lambda_tasks.decorators import lambda_task",
            "three words only",
            "1 2 3 4 5 6",
        ],
    )
    def test_code_is_not_a_sentence(self, text: str) -> None:
        assert not is_sentence(text)

    @pytest.mark.parametrize(
        "text",
        [
            "The value must be a string.",
            "Update the index after the migration.",
            "With the outbox, the message is kept.",
            "Give LAMBDA_TASKS_QUEUES at least one queue (see the docs).",
        ],
    )
    def test_message_is_a_sentence(self, text: str) -> None:
        assert is_sentence(text)

    def test_names_are_split_into_words(self) -> None:
        text = """
            class TestIt:
                def test_message_is_sent(self): ...
                async def test_it_waits(self): ...
                def helper_of_tests(self): ...
        """
        assert found("tests/a.py", text) == [(2, "message is sent"), (3, "it waits")]


class TestMarkdown:
    TEXT: Final = """
        # The *outbox*

        A message is kept in the
        `table`, see [the page](page.md#anchor).

        ```python
        # This is code with words in it.
        ```

        1. First the **one**,
           then the other.

           A second paragraph.
        - Another item.

        | Option | Meaning |
        |---|---:|
        | `a` | a\\|b is it |

            indented code
    """

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("heading", [(1, "The outbox")]),
            ("paragraph", [(3, "A message is kept in the _, see the page.")]),
            (
                "list item",
                [(10, "First the one, then the other."), (13, "A second paragraph."), (14, "Another item.")],
            ),
            ("cell", [(16, "Option"), (16, "Meaning"), (18, "_"), (18, "a\\|b is it")]),
        ],
    )
    def test_blocks_are_told_apart(self, kind: Kind, expected: list[tuple[int, str]]) -> None:
        assert sorted(found("docs/a.md", self.TEXT, kind)) == sorted(expected)

    def test_hit_has_the_line_of_its_words(self) -> None:
        [hit] = check_text("docs/a.md", "One line,\nand the message is sent\nanew here.\n").hits
        assert (hit.line, hit.pattern.name) == (3, "anew")

    def test_inline_code_is_not_prose(self) -> None:
        assert check_text("docs/a.md", "The log line is `it waits for ever`.\n").clean


class TestTemplates:
    def test_text_is_extracted(self) -> None:
        text = """
            {% extends "base.html" %}{% load i18n %}
            <p class="a b">The message to {{ queue }}
              is <b>dead</b>.</p>
            <script>let x = "for ever and more";</script>
            <h1>{% translate "Send it now" %}</h1>
        """
        assert found("a.html", text) == [(2, "The message to _ is dead."), (5, "Send it now")]


class TestEscapes:
    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("lambda_tasks/a.py", "x = 1  # it waits for ever  # prose: ok\n"),
            ("lambda_tasks/a.py", "# It waits\n# for ever.  # prose: ok\n"),
            ("lambda_tasks/a.py", '"""It waits\n\nfor ever."""  # prose: ok (quotes a log line)\n'),
            ("lambda_tasks/a.py", 'x = (\n    "It waits for ever "\n    "in the queue"  # prose: ok\n)\n'),
            ("tests/a.py", "def test_nobody_waits(): ...  # prose: ok\n"),
            ("docs/a.md", "It waits.\nIt waits for ever. <!-- prose: ok -->\n"),
            ("a.html", "<p>It waits for ever.</p> {# prose: ok #}\n"),
        ],
    )
    def test_escape_exempts_its_line(self, path: str, text: str) -> None:
        checked = check_text(path, text)
        assert checked.clean
        assert checked.escapes == 1

    def test_escape_exempts_no_other_line(self) -> None:
        checked = check_text("docs/a.md", "It waits for ever.\nIt waits anew. <!-- prose: ok -->\n")
        assert [hit.line for hit in checked.hits] == [1]

    def test_unused_escape_is_reported(self) -> None:
        checked = check_text("docs/a.md", "It waits.\n\nIt waits. <!-- prose: ok -->\n")
        assert checked.unused == (3,)
        [problem] = problems([checked])
        assert problem.startswith("docs/a.md:3:")

    def test_quoted_escape_exempts_nothing(self) -> None:
        assert check_text("docs/a.md", "Write `# prose: ok` on the line.\n").escapes == 0


class TestGate:
    CLEAN: Final = Checked("a.py", ())
    DIRTY: Final = Checked("b.py", (Hit("b.py", 7, PATTERNS[0], "waits for ever"),))

    def test_clean_files_pass(self) -> None:
        assert problems([self.CLEAN]) == []

    def test_hit_is_a_problem_with_its_remedy(self) -> None:
        [problem] = problems([self.CLEAN, self.DIRTY])
        assert problem.startswith("b.py:7: [for ever] waits for ever")
        assert PATTERNS[0].instead in problem

    def test_built_and_hidden_files_are_skipped(self, tmp_path: Path) -> None:
        for name in ("a.py", "docs/b.md", "c.html", "d.txt", ".venv/e.py", "build/f.py", "x/__pycache__/g.py"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert [path.relative_to(tmp_path).as_posix() for path in files([tmp_path])] == ["a.py", "c.html", "docs/b.md"]


class TestCommand:
    @pytest.fixture
    def repository(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """Return a directory that replaces the repository."""
        (tmp_path / "a.md").write_text("It waits for ever.\n\nIt waits anew.\n")
        (tmp_path / "b.md").write_text("It waits.\n")
        monkeypatch.setattr("tests.prose.ROOT", tmp_path)
        return tmp_path

    def run(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["prose", *arguments])
        return main()

    def test_lint_passes_without_hits(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (repository / "a.md").unlink()
        assert self.run(monkeypatch) == 0
        assert capsys.readouterr().out == "Prose: 1 files checked, 0 problems, 0 exempted lines.\n"

    def test_lint_fails_with_hits(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (repository / "b.md").write_text("It waits without a word.\n")
        assert self.run(monkeypatch) == 1
        assert "b.md:1: [without a word] It waits without a word." in capsys.readouterr().out

    def test_report_lists_hits_and_succeeds(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(monkeypatch, "--report", str(repository / "a.md")) == 0
        printed = capsys.readouterr().out
        assert "a.md:1: [for ever]" in printed
        assert "a.md:3: [anew]" in printed
        assert "2 hits in 1 files" in printed
