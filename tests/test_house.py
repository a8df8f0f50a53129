"""The house: which package may import which, and what the old addresses lead to."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import covkeras

ROOT = Path(covkeras.__file__).parent
# From the ground up: a package imports those before it, never one behind it. Those of a floor don't know each other.
FLOORS = (
    ("runtime",),
    ("datasets", "models", "moments", "certification"),
    ("objectives", "diagnostics", "exporting"),
    ("training",),
    ("experiments",),
    ("reports",),
    ("commands",),
)
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}


def imports(path: Path) -> set[str]:
    """The packages of covkeras that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("covkeras"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("covkeras.")}
    return found


def test_the_listing_is_the_architecture():
    entries = {p.stem for p in ROOT.iterdir() if not p.name.startswith(("__", "."))}
    assert entries == set(FLOOR) and len(entries) <= 12
    for name in entries - {"models"}:
        doc = ast.get_docstring(ast.parse((ROOT / name / "__init__.py").read_text()))
        assert doc and 3 <= len(doc.splitlines()) <= 12, name


@pytest.mark.parametrize("name", FLOOR)
def test_imports_run_one_way(name):
    files = [ROOT / f"{name}.py"] if (ROOT / f"{name}.py").exists() else (ROOT / name).glob("*.py")
    for path in files:
        for other in imports(path) - {name, "__version__"}:
            assert FLOOR[other] < FLOOR[name], f"{path.name} of {name} imports {other}"


def test_what_moved_is_found_at_its_old_address():
    for old, new in covkeras.MOVED.items():
        assert importlib.import_module(f"covkeras.{old}") is importlib.import_module(f"covkeras.{new}")
    program = (
        "from covkeras.trainer import CertifiedTrainer; import covkeras.report; from covkeras import jobs\n"
        "from covkeras.validation import check_classifier, check_images"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, capture_output=True)


def test_every_public_name_is_there():
    for name in covkeras.__all__:
        assert getattr(covkeras, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'magic'"):
        _ = covkeras.magic
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("covkeras.magic")


def test_text_files_are_read_and_written_as_utf8():
    """Python's default is the locale's encoding, which a report's or a recipe's reader does not share."""
    for path in [*ROOT.rglob("*.py"), ROOT.parent / "setup.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = getattr(node, "func", None)
            name = getattr(called, "attr", getattr(called, "id", None))
            if name not in ("open", "read_text", "write_text") or any(k.arg == "encoding" for k in node.keywords):
                continue
            given = ast.unparse(node)
            assert name == "open" and any(w in given for w in ("b'", "b+'", "Image", "opener")), f"{path}: {given}"
