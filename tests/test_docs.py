"""The pages: their code runs or at least compiles, their links lead somewhere, the tour is executed."""

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def test_the_tours_code_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr("tempfile.mkdtemp", lambda *a, **k: str(tmp_path))
    names = runpy.run_path(str(DOCS / "tour" / "tour_digits.py"))
    assert names["certificates"].radius.max() > 0.25 and (names["answer"]["radius"].numpy() >= 0).all()
    assert (tmp_path / "report" / "index.html").exists() and (tmp_path / "digits" / "1" / "saved_model.pb").exists()
    assert "average certified radius: 0." in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_and_code_of_a_page(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        # The executed tour is made when the pages are built.
        there = DOCS / target.replace("executed/", "tour/").replace(".rst", ".py")
        assert there.exists(), f"{page.name} links to {target}"
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, page.name, "exec")
    # Every page can be reached from the first.
    assert page.stem == "index" or f"\n{page.stem}\n" in (DOCS / "index.md").read_text()


def test_commands_in_the_pages_exist():
    """Every program and every flag that a page or the README names."""
    root = DOCS.parent
    for page in [*PAGES, root / "README.md"]:
        text = page.read_text().replace("\\\n", " ")
        for program, rest in re.findall(r"python ((?:training|serving|benchmarks)/\w+\.py)([^\n`]*)", text):
            assert (root / program).exists(), f"{page.name}: {program}"
            flags = set(re.findall(r"(--[a-z][a-z-]*)", rest)) - {"--help"}
            source = (root / program).read_text() + (root / "covkeras" / "commands" / "cli.py").read_text()
            fields = (root / "covkeras" / "experiments" / "recipe.py").read_text()
            for flag in flags:
                known = f'"{flag}"' in source or f"    {flag[2:].replace('-', '_')}: " in fields
                assert known, f"{page.name}: {program} has no {flag}"
