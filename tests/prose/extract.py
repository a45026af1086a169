"""Extract the prose of a file: what a reader reads as sentences, without the code around it."""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Kind = Literal[
    "docstring", "comment", "string", "error", "test name", "paragraph", "list item", "heading", "cell", "html"
]


@dataclass(frozen=True, slots=True)
class Piece:
    """One paragraph of prose. Code in it is replaced by `_`, and line breaks are kept, so that lines can be counted."""

    kind: Kind
    line: int
    text: str
    last_line: int = 0
    #: Whether `line` is that of every word: an f-string does not show on which line its parts are.
    one_line: bool = False

    @property
    def flat(self) -> str:
        return self.text.replace("\n", " ")

    def line_of(self, offset: int) -> int:
        return self.line if self.one_line else self.line + self.text.count("\n", 0, offset)


def pieces(path: Path, text: str) -> list[Piece]:
    """Return the prose of a file, by the ending of its name."""
    return list(READERS[path.suffix](path, text))


# Python


def of_python(path: Path, text: str) -> Iterator[Piece]:
    """Yield docstrings, comments, strings that are sentences, and the names of tests.

    In tests, strings are data or quotations of the library's messages: only docstrings, comments and names are read.
    """
    yield from _comments(text)
    stack: list[tuple[ast.AST, Kind]] = [(ast.parse(text), "string")]
    in_test = "tests" in path.parts
    while stack:
        node, kind = stack.pop()
        match node:
            case ast.Constant(value=str(value)) if not in_test:
                yield from _string(node, value, kind)
                continue
            case ast.JoinedStr() if not in_test:
                yield from _string(node, _text_of_f_string(node), kind)
                continue
            case ast.Raise():
                kind = "error"
            case ast.Call() if _NAME_OF_ERROR.search(_name_of(node.func)):
                kind = "error"
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if (docstring := _docstring(node)) is not None:
                    yield from of_markdown_text(
                        str(docstring.value), docstring.lineno, "docstring", _last_line(docstring)
                    )
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                    words = node.name.removeprefix("test_").replace("_", " ")
                    yield Piece("test name", node.lineno, words, node.lineno, one_line=True)
        stack.extend((child, kind) for child in _children(node))


_NAME_OF_ERROR: Final = re.compile(r"(Error|Exception|Warning|Invalid\w+|Unknown\w+|Finding)$|^(Redeliver|warn)$")


def _name_of(function: ast.expr) -> str:
    match function:
        case ast.Name():
            return function.id
        case ast.Attribute():
            return function.attr
    return ""


def _children(node: ast.AST) -> list[ast.AST]:
    children: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, list):
            children.extend(item for item in value if isinstance(item, ast.AST))
        elif isinstance(value, ast.AST) and value._fields:
            children.append(value)
    # A string that is a statement is a docstring or a comment about an attribute, and no message.
    return [child for child in children if not _is_bare_string(child)]


def _is_bare_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.Constant | None:
    if node.body and _is_bare_string(node.body[0]):
        statement = node.body[0]
        assert isinstance(statement, ast.Expr)
        assert isinstance(statement.value, ast.Constant)
        return statement.value
    return None


def _last_line(node: ast.expr) -> int:
    return node.end_lineno or node.lineno


def _text_of_f_string(node: ast.JoinedStr) -> str:
    parts = (value.value if isinstance(value, ast.Constant) else "_" for value in node.values)
    return "".join(str(part) for part in parts)


def _string(node: ast.expr, text: str, kind: Kind) -> Iterator[Piece]:
    if not is_sentence(text):
        return
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        words = re.sub(r"\s+", " ", _without_placeholders(_without_markup(paragraph)))
        yield Piece(kind, node.lineno, words, _last_line(node), one_line=True)


def _without_placeholders(text: str) -> str:
    return re.sub(r"%\(\w+\)[sdr]|%[sdr]|%\.?\d*[sdrf]|\{\w*(![rsa])?(:[^{}]*)?\}", "_", text)


_WORD: Final = re.compile(r"(?<![\w.])[A-Za-z][a-z']*(?![\w(=])")
_SQL: Final = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|TRUNCATE|WITH|SET|LOCK|EXPLAIN|GRANT|REVOKE|ANALYZE|VACUUM)\b"
    r"[^.;]*\b(FROM|INTO|SET|WHERE|TABLE|INDEX|VALUES|AS|ON|TO|LOCAL|SESSION|ORDER BY|SELECT|VIEW|DATABASE)\b"
)
_CODE: Final = re.compile(
    r"\(\?[:=!<P]|\\[wsdb]|\[\^|^\s*(def|class|import|from \w+ import|return|raise|assert|with|if|for|@)\b[^.]*[:(]"
    r"|\n {4,}\S+\(|^\s*[<{\[]|^[\w.]+ = |==|::|\bself\.|;$|^\s*#!"
)


def is_sentence(text: str) -> bool:
    """Tell whether a string is prose: more than three words, and neither SQL nor a regular expression nor code."""
    if text.count(" ") < 3 or _SQL.match(text) or _CODE.search(text):
        return False
    return len(_WORD.findall(text)) > 3


_TOKEN: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"""'
    r"|'''(?:\\.|[^\\])*?'''"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'(?:\\.|[^'\\\n])*'"
    r"|#[^\n]*",
    re.DOTALL,
)
_NO_PROSE: Final = re.compile(r"#!|# (noqa|type:|fmt:|ruff:|mypy:|pragma|pylint)|#:?\s*$|# -\*-|# prose: ok")
_TRAILING_MARK: Final = re.compile(r"\s*# (noqa|type:|prose: ok).*$")


def _comments(text: str) -> Iterator[Piece]:
    """Yield the comments, with those on lines that follow each other as one paragraph."""
    starts = _starts_of_lines(text)
    block: list[str] = []
    first = previous = column = 0
    for token in _TOKEN.finditer(text):
        comment = token[0]
        if not comment.startswith("#") or _NO_PROSE.match(comment):
            continue
        line = bisect_right(starts, token.start())
        at = token.start() - starts[line - 1]
        alone = not text[starts[line - 1] : token.start()].strip()
        if block and not (alone and line == previous + 1 and at == column):
            yield from of_markdown_text("\n".join(block), first, "comment", previous)
            block = []
        if not block:
            first, column = line, at
        block.append(_TRAILING_MARK.sub("", comment).lstrip("#:").removeprefix(" "))
        previous = line
        if not alone:
            column = -1
    if block:
        yield from of_markdown_text("\n".join(block), first, "comment", previous)


def _starts_of_lines(text: str) -> list[int]:
    return [0, *(match.end() for match in re.finditer("\n", text))]


# Markdown, which docstrings and comments are too


def of_markdown(path: Path, text: str) -> Iterator[Piece]:
    """Yield paragraphs, list items, headings and cells of tables, without code."""
    return of_markdown_text(text, 1)


def of_markdown_text(text: str, first_line: int, kind: Kind | None = None, last_line: int = 0) -> Iterator[Piece]:
    """Yield the pieces of Markdown; all are of `kind` if it is given, as those of a docstring are."""
    reader = _MarkdownReader(kind, last_line)
    base = _indentation(text)
    for line, raw in enumerate([*text.split("\n"), ""], first_line):
        yield from reader.read(line, raw[base:] if raw[:base].isspace() else raw)


_FENCE: Final = re.compile(r"\s*(```|~~~)")
_ITEM: Final = re.compile(r"(\s*)([-*+]|\d+[.)])\s+")
_HEADING: Final = re.compile(r"#{1,6}\s+")
_RULE: Final = re.compile(r"\s*([-*_=]\s*){3,}$|\s*\|?[\s:|-]+\|[\s:|-]*$")
_BAR: Final = re.compile(r"(?<!\\)\|")


class _MarkdownReader:
    """Read Markdown line by line.

    A block that is indented by four spaces after an empty line is code, unless it continues a list item.
    """

    def __init__(self, kind: Kind | None, last_line: int) -> None:
        self._kind = kind
        self._last_line = last_line
        self._paragraph: list[str] = []
        self._paragraph_kind: Kind = "paragraph"
        self._begins = 0
        self._fenced = self._in_list = False
        self._after_empty_line = True

    def read(self, line: int, content: str) -> Iterator[Piece]:
        """Take the next line; yield what it ends, and what it is by itself."""
        if _FENCE.match(content):
            self._fenced = not self._fenced
            yield from self._end(line)
        elif not self._fenced:
            yield from self._read_prose(line, content)
            self._after_empty_line = not content.strip()

    def _read_prose(self, line: int, content: str) -> Iterator[Piece]:
        stripped = content.strip()
        if not stripped or _RULE.match(content):
            yield from self._end(line)
        elif stripped.startswith("|"):
            yield from self._end(line)
            self._in_list = self._in_list and content.startswith(" ")
            for cell in filter(str.strip, _BAR.split(stripped.strip("|"))):
                yield self._piece("cell", line, cell.strip(), line)
        elif self._kind is None and (heading := _HEADING.match(content)):
            yield from self._end(line)
            self._in_list = False
            yield self._piece("heading", line, content[heading.end() :], line)
        elif item := _ITEM.match(content):
            yield from self._end(line)
            self._in_list = True
            self._begin("list item", line, content[item.end() :].strip())
        elif self._paragraph:
            self._paragraph.append(stripped)
        elif self._in_list and content.startswith(" "):
            self._begin("list item", line, stripped)
        elif not (self._after_empty_line and content.startswith("    ")):
            self._in_list = False
            self._begin("paragraph", line, stripped)

    def _begin(self, kind: Kind, line: int, text: str) -> None:
        self._paragraph_kind, self._begins, self._paragraph = kind, line, [text]

    def _end(self, line: int) -> Iterator[Piece]:
        if self._paragraph:
            yield self._piece(self._paragraph_kind, self._begins, "\n".join(self._paragraph), line - 1)
            self._paragraph = []

    def _piece(self, kind: Kind, line: int, text: str, last_line: int) -> Piece:
        return Piece(self._kind or kind, line, _without_markup(text), self._last_line or last_line)


def _indentation(text: str) -> int:
    """Return by how much the lines of a docstring are indented, from the second on."""
    return min((len(line) - len(line.lstrip()) for line in text.split("\n")[1:] if line.strip()), default=0)


def _keeping_lines(replacement: str) -> Callable[[re.Match[str]], str]:
    return lambda match: replacement + "\n" * match[0].count("\n")


_MARKUP: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...]] = (
    (re.compile(r"<!--.*?-->", re.DOTALL), _keeping_lines("")),
    (re.compile(r"``.+?``|`[^`]*`", re.DOTALL), _keeping_lines("_")),
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)", re.DOTALL), lambda match: match[1]),
    (re.compile(r"</?[a-z][^<>]*>", re.DOTALL), _keeping_lines("")),
    (re.compile(r"\*\*|(?<![\w*])\*(?=\S)|(?<=\S)\*(?![\w*])"), _keeping_lines("")),
)


def _without_markup(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


# HTML


_TEMPLATE_CODE: Final = (
    (re.compile(r"\{#.*?#\}|<!--.*?-->|\{% comment %\}.*?\{% endcomment %\}", re.DOTALL), ""),
    (re.compile(r"<(script|style|pre|code)\b.*?</\1>", re.DOTALL), "_"),
    (re.compile(r"\{\{.*?\}\}", re.DOTALL), "_"),
    (re.compile(r"\{%.*?%\}", re.DOTALL), " "),
    (re.compile(r"</?(?:a|b|i|em|strong|span|small|kbd|abbr|time)\b[^<>]*>", re.DOTALL), ""),
)


def of_html(path: Path, text: str) -> Iterator[Piece]:
    """Yield the text between the tags of a template."""
    for sentence in re.finditer(r"\{%\s*(?:translate|trans)\s+(\"[^\"]*\"|'[^']*')", text):
        yield Piece("html", text.count("\n", 0, sentence.start()) + 1, sentence[1][1:-1])
    for pattern, replacement in _TEMPLATE_CODE:
        text = pattern.sub(_keeping_lines(replacement), text)
    for between in re.finditer(r"(?:^|(?<=>))[^<>]*?[A-Za-z][^<>]*", text):
        words = between[0]
        first_line = text.count("\n", 0, between.start() + len(words) - len(words.lstrip())) + 1
        words = re.sub(r"[ \t]*\n[ \t]*", "\n", words.strip())
        yield Piece("html", first_line, re.sub(r"[ \t]+", " ", words))


READERS: Final[dict[str, Callable[[Path, str], Iterator[Piece]]]] = {
    ".py": of_python,
    ".md": of_markdown,
    ".html": of_html,
}
