"""The code in the documentation has no type errors: in mypy with the plugin of django-stubs, without it, in pyright."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.project.test_docs import PAGES, ROOT, blocks
from tests.typing import pyright

pytestmark = [pytest.mark.thorough, pytest.mark.once]

#: The imports of the pages' imaginary shop. A page's blocks are one program here, which has the names already.
SHOP: Final = re.compile(r"^from shop[\w.]* import (?:\([^)]*\)|.*)$", re.MULTILINE)
#: The mark of a line that shows an error.
RAISING: Final = re.compile(r"  # raises \w+$", re.MULTILINE)

OPTIONS: Final = (
    *("--check-untyped-defs", "--allow-redefinition-new", "--local-partial-types", "--ignore-missing-imports"),
    # Names of the shop that no block shows, and blocks that show another version of a task.
    *("--disable-error-code=name-defined", "--disable-error-code=no-redef", "--disable-error-code=import-untyped"),
)


def program(page: Path) -> str:
    """Return the Python code of a page as one program."""
    code = "\n".join(f"# line {block.line}\n{block.code}" for block in blocks(page, "python"))
    code = re.sub(r"^from __future__ .*$", "", code, flags=re.MULTILINE)
    code = SHOP.sub(lambda found: re.sub("^", "# ", found[0], flags=re.MULTILINE), code)
    return "from __future__ import annotations\n" + RAISING.sub("  # type: ignore", code)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = []
    for page in PAGES:
        if blocks(page, "python"):
            name = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
            found.append(folder / f"{name}.py")
            found[-1].write_text(program(page))
    return found


@pytest.mark.parametrize("kind", ["without_plugin", "with_django_stubs"])
def test_code_on_pages_has_no_type_errors(kind: str, programs: list[Path], tmp_path: Path) -> None:
    config = tmp_path / "mypy.toml"
    # In the stubs of Django 6, managers are Any for Python 3.10, which Django 6 does not support.
    lines = ["[tool.mypy]", 'python_version = "3.12"']
    if kind == "with_django_stubs":
        lines += ['plugins = ["mypy_django_plugin.main", "pydantic.mypy"]']
        lines += ["[tool.django-stubs]", 'django_settings_module = "tests.settings"']
    config.write_text("\n".join(lines))
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", f"--config-file={config}", *OPTIONS),
            *("--cache-dir", f"{sys.prefix}/.mypy_cache_of_pages_{kind}", *programs),
        ],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = [line for line in run.stdout.splitlines() if ": error:" in line and programs[0].parent.name in line]
    assert len(programs) > 20
    assert found == [], run.stdout + run.stderr
    assert f"{len(programs)} source files" in run.stdout, run.stdout + run.stderr


def test_code_on_pages_has_no_errors_in_pyright(programs: list[Path], tmp_path: Path) -> None:
    # Of other libraries, pages may show packages that the tests do not need: mypy ignores these, too.
    found = pyright.errors(
        programs, tmp_path, reportUndefinedVariable=False, reportRedeclaration=False, reportMissingImports=False
    )
    # Several blocks of a page may import a constant, and pyright takes the second import for an assignment.
    problems = [each for each in found if "is declared as Final" not in each["message"]]
    assert [(each["file"], pyright.line(each), each["message"]) for each in problems] == []
