"""The Python files of a code base, and the names that each imports."""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lambda_tasks.operations.from_celery.findings import Unread

#: Folders with generated files, and with those of other projects.
_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "env", "build", "dist"})
#: What a file contains in which there is anything to report.
_RELEVANT: Final = re.compile(
    r"celery|shared_task|@[\w.]+\.task\b|\.delay|apply_async|add_periodic_task|send_task|\.si?\(|chord\(", re.IGNORECASE
)


@dataclass(frozen=True)
class Source:
    """A file of the code base."""

    #: Its path, relative to that of the code base.
    file: str
    tree: ast.Module
    #: All nodes of the tree, since each search looks at them.
    nodes: tuple[ast.AST, ...] = ()
    #: The dotted path of each imported name or module, by the name that it has in the file.
    imports: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The dotted path of the module, from the folder of the code base."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def origin(self, node: ast.expr) -> str:
        """Return the dotted path of a name or an attribute, with imported names as their modules know them."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        return ".".join([self.imports.get(node.id, node.id), *parts])


def python_files(path: Path) -> Iterator[Path]:
    """Yield the Python files in a folder, in their order, or the file itself. Hidden folders are left out."""
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        if "pyvenv.cfg" in names:
            folders[:] = []
            continue
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def read(file: Path, root: Path) -> Source | Unread | None:
    """Return a file as a source, or why it cannot be read; None if there is nothing to report about it."""
    shown = file.name if file == root else file.relative_to(root).as_posix()
    try:
        content = file.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
        if not _RELEVANT.search(text):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as a SyntaxWarning about an escape sequence
            tree = ast.parse(text)
    except OSError as error:
        return Unread(shown, error.strerror or type(error).__name__)
    except SyntaxError as error:
        return Unread(shown, f"line {error.lineno}: {error.msg}" if error.lineno else error.msg)
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, an encoding, or an absurd nesting
        return Unread(shown, str(error) or type(error).__name__)
    nodes = tuple(ast.walk(tree))
    return Source(shown, tree, nodes, _imports(nodes))


def _imports(nodes: Iterable[ast.AST]) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                found[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                found[alias.asname or alias.name] = f"{module}.{alias.name}" if node.module else f"{module}{alias.name}"
    return found
