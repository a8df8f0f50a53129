"""The pages: their code runs or at least compiles, their links lead somewhere, the tour is executed."""

import re
import runpy
from pathlib import Path

import pytest

from covkeras.commands.main import COMMANDS

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


PROGRAMS = {"run": "train", "local": "serve"}


def flags_of(command: str, capsys) -> set[str]:
    """The flags a command's own --help names."""
    from covkeras.commands.main import main

    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    return set(re.findall(r"(--[a-z][a-z0-9-]*)", capsys.readouterr().out))


def test_commands_in_the_pages_exist(capsys):
    """Every program, command and flag that a page or a README names, asked of its parser."""
    root, found, known = DOCS.parent, 0, {}
    pattern = r"(?:python ((?:training|serving|benchmarks)/\w+\.py)|(?<![\w./-])covkeras ([a-z][a-z-]+))([^\n`|]*)"
    for page in [*PAGES, root / "README.md", root / "serving" / "README.md"]:
        text = page.read_text().replace("\\\n", " ")
        for program, command, rest in re.findall(pattern, text):
            flags = set(re.findall(r"(?<= )(--[a-z][a-z0-9-]*)", rest))
            if command and command not in COMMANDS:
                assert not flags, f"{page.name}: covkeras {command}"
                continue
            if program:
                assert (root / program).exists(), f"{page.name}: {program}"
                name = Path(program).stem
                command = PROGRAMS.get(name, name).replace("_", "-")
            if program.startswith("benchmarks"):
                options = set(re.findall(r'"(--[a-z][a-z0-9-]*)"', (root / program).read_text()))
            else:
                options = known.setdefault(command, None) or known.update({command: flags_of(command, capsys)})
                options = known[command]
            found += 1
            for flag in flags - {"--help"}:
                assert flag in options, f"{page.name}: {program or command} has no {flag}"
    assert found > 20


def test_the_readme_is_short_and_its_links_lead_somewhere():
    root = DOCS.parent
    text = (root / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (root / target).exists(), target
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, "README.md", "exec")
