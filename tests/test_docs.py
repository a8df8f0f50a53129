"""The pages: their code runs or at least compiles, their links lead somewhere, the tour is executed."""

import importlib.util
import json
import re
import runpy
from pathlib import Path

import pytest

from covkeras.commands.main import COMMANDS

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "results"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(RESULTS.glob("*.md"))]


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
        there = page.parent / target.replace("executed/", "tour/").replace(".rst", ".py")
        assert there.exists(), f"{page.name} links to {target}"
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, page.name, "exec")
    # Every page can be reached from the first.
    assert (
        page == DOCS / "index.md" or _name(page) in (DOCS / "index.md").read_text() + (RESULTS / "index.md").read_text()
    )


def _name(page: Path) -> str:
    """As a list of pages names it."""
    return f"\n{'results/index' if page == RESULTS / 'index.md' else page.stem}\n"


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


def builder():
    spec = importlib.util.spec_from_file_location("build_results", RESULTS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_of_results_are_what_is_built(capsys):
    assert builder().main(["--check"]) == 0, capsys.readouterr().out


def test_the_readmes_table_is_of_the_committed_figures():
    """Every row of README's table against the file it comes from."""
    rows = builder().rows_of("mnist")
    readme = (DOCS.parent / "README.md").read_text().replace("**", "")
    methods = {row["method"] for row in rows}
    assert len(methods) == 5
    for method in methods:
        acr = {row["sigma"]: row["ACR"] for row in rows if row["method"] == method}
        cost = next(row["step cost"] for row in rows if row["method"] == method)
        line = f"| {acr[0.25]:.3f} | {acr[0.5]:.3f} | {acr[1.0]:.3f} | {cost:#.3g} |"
        assert line.replace("| 1.00 |", "| 1 |") in readme, (method, line)


def test_the_readmes_other_figures_are_of_the_committed_ones():
    """What `make train` prints, by rows, and what the prose says of costs."""
    readme, build = (DOCS.parent / "README.md").read_text(), builder()
    for method in ("stepped_consistency", "covariance_radius"):
        row = build.row_of("digits_stepped", method)
        accuracies = [f"{row[f'acc at {r}']:.3f}" for r in ("0", "0.25", "0.5", "0.75")]
        words = [method, f"{row['ACR']:.4f}", *accuracies, f"{row['abstained']:.3f}", str(row["images"])]
        assert words in [line.split() for line in readme.splitlines()]
        for estimate, found in row["fidelity"].items():
            figures = f"{found['rank correlation']:.3f} {found['median ratio']:.2f} {found['images']}"
            assert f"{method} {estimate} {figures}" in " ".join(readme.split()), (method, estimate)
    steps = build.row_of("steps", "covariance_radius")
    published = build.row_of("steps", "the same, its own PyTorch over its own plain step")
    ours = min(row["median"] for row in build.rows_of("deciding_samples") if row["radius"] == 0.5)
    prose = " ".join(readme.split())
    assert f"step costs {steps['LeNet']} plain ones on a LeNet" in prose
    assert f"and {steps['ResNet 128']:.1f} to {steps['ResNet 64']:.1f} on PreActResNet-18" in prose
    assert f"where its published code costs {published['LeNet']}." in prose
    attack = build.row_of("smooth_adv", "smooth_adv")
    behind = f"ahead of SmoothAdv by {attack['ours over it']:.3f} ({attack['ours over it se']:.3f}) at 0.5"
    cost = build.row_of("image_gradient", "smooth_adv; float32; one core")["after"]
    assert f"{behind}, whose step costs {cost:.1f}." in prose
    natural = build.row_of("cifar10_gpu", "stepped_consistency; eps 1")["over Consistency"]
    assert f"CIFAR-10 the first form is ahead by {natural:.3f}" in prose
    assert f"takes {ours:.0f} samples in the median instead of 100,000" in prose


def test_the_readmes_words_on_the_rate_and_on_cat_rs_are_of_the_committed_figures():
    prose, build = " ".join((DOCS.parent / "README.md").read_text().split()), builder()

    def row(method, sigma):
        return build.row_of("mnist_seeds", f"{method}; sigma {sigma}, 24 epochs, rate 0.1")

    methods = {"noise alone": "gaussian_augmentation", "Consistency": "consistency"}
    for name, method in (methods | {"`stepped_consistency` (ours)": "stepped_consistency"}).items():
        half, one = row(method, 0.5), row(method, 1)
        assert half["seeds"] == one["seeds"] == 3
        assert re.search(rf"{re.escape(name)} {half['ACR']:.3f} (at sigma 0.5 )?and {one['ACR']:.3f}", prose), name
    ours = {
        sigma: build.row_of("mnist_many", f"stepped_consistency; sigma {sigma}; 10,000; 1000")
        for sigma in (0.25, 0.5, 1)
    }
    assert all(abs(ours[s]["over Consistency"]) < 2 * ours[s]["over Consistency se"] for s in (0.25, 0.5))
    assert "ties with Consistency at sigma 0.25 and 0.5" in prose
    lead, se = ours[1]["over Consistency"], ours[1]["over Consistency se"]
    many = build.row_of("mnist_many", "stepped_consistency; sigma 1; 100,000; 1000")["over Consistency"]
    less = build.row_of("mnist_many", "consistency; sigma 1; 10,000; 1000")
    more, fewer = (100 * abs(ours[1][f"acc at {r}"] - less[f"acc at {r}"]) for r in (2, 1))
    ahead = (
        f"{lead:.3f} of ACR (standard error {se:.3f}; 1,000 images; {many:.3f} with n = 100,000) at 1: {more:.1f} % "
        f"more of the images are certified at radius 2, {fewer:.1f} % fewer at 1."
    )
    assert ours[1]["acc at 2"] > less["acc at 2"] and ours[1]["acc at 1"] < less["acc at 1"]
    own, other = (
        build.row_of("image_gradient", f"{name}; mixed_bfloat16; one core")["after"]
        for name in ("stepped_consistency", "cat_rs")
    )
    assert f"for steps of {own:.1f} plain ones" in prose and f"is ahead by {ahead}" in prose
    keys = ("cat_rs; noise 1, 24 epochs, seed 0; 0.1", *(f"noise 1.1, {n} epochs, seed 0" for n in (24, 48)))
    theirs, tenth, fifth = (build.row_of("wide", key) for key in keys)
    assert f"CAT-RS, whose step costs {other:.1f}, is the one to beat ({theirs['epochs']} epochs at that rate)" in prose
    away = [fifth[k] - theirs[k] for k in theirs if k.startswith("acc at")]
    said = (
        f"certified accuracy at every radius, to {-100 * min(away):.1f} %, in {fifth['epochs']} epochs, a fifth of its"
    )
    assert f"{said} time (ACR {fifth['over CAT-RS']:.3f}, standard error {fifth['over CAT-RS se']:.3f};" in prose
    assert f"in a tenth it is behind by {-tenth['over CAT-RS']:.3f}." in prose
    shares = [own * one["epochs"] / (other * theirs["epochs"]) for one in (tenth, fifth)]
    assert [round(share, 1) for share in shares] == [0.1, 0.2]


def test_no_page_of_results_types_a_figure():
    """Three decimals are a measurement: it stands in data/ and is asked for. Commands and alpha are settings."""
    for page in sorted((DOCS / "results" / "pages").glob("*.md")):
        words = re.sub(r"{{.*?}}", "", page.read_text(), flags=re.DOTALL)
        lines = [line for line in words.splitlines() if not line.startswith("    ")]
        typed = [line for line in lines if re.search(r"\.\d{3}", line.replace("alpha 0.001", ""))]
        assert not typed, f"{page.name}: {typed}"


def test_figures_are_found_computed_and_missed_by_name(tmp_path):
    build = builder()
    (tmp_path / "data").mkdir()
    rows = [{"method": "a", "sigma": 0.5, "ACR": 1.25, "n": 1000}, {"method": "b", "sigma": 0.5, "ACR": 1.0, "n": None}]
    (tmp_path / "data" / "toy.json").write_text(json.dumps({"rows": rows}))
    build.HERE = tmp_path
    text = "{{toy[a; 0.5].ACR:.2f}} {{toy[a].ACR - toy[b].ACR:+.3f}} {{(toy[a].ACR + 1) / 2 * toy[b].ACR:.3f}}"
    assert build.build(text).splitlines()[-1] == "1.25 +0.250 1.125"
    table = "{{table toy\nwhere sigma = 0.5\nmethod: {method}\nACR: {ACR:.1f} max\nn: {n:,}\n}}"
    assert build.build(table).splitlines()[2:] == [
        "| method | ACR | n |",
        "|---|---:|---:|",
        "| a | **1.2** | 1,000 |",
        "| b | 1.0 |  |",
    ]
    for wrong, message in (
        ("{{toy[c].ACR:.2f}}", "must be one row, found 0"),
        ("{{toy[0.5].ACR:.2f}}", "must be one row, found 2"),
        ("{{toy[a].acr:.2f}}", "has no 'acr'"),
        ("{{none[a].ACR:.2f}}", "no figures"),
        ("{{1 + 1:.2f}}", "names no figure"),
        ("{{toy[a].ACR ** 2:.2f}}", "no arithmetic"),
        ("{{table toy\nACR: {acr}\n}}", "no field"),
        ("{{table toy\nwhere sigma = 1\nACR: {ACR}\n}}", "no rows"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            build.build(wrong)
