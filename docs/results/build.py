"""Builds the pages of results from the committed figures: `python docs/results/build.py`, and --check to compare.

data/NAME.json holds figures: {"command", "machine", "rows": [{field: value}]}, as `covkeras compare`, `covkeras train`
and `covkeras search` write them (report/results.json). pages/NAME.md holds the words, and asks for figures:

    {{NAME[row].field:.3f}}                   a figure; row: a value that stands in the row, or several, with semicolons
    {{NAME[row].field - NAME[row].field:+.3f}} their difference; + - * / ( ) and numbers
    {{table NAME
    title: {field:.3f} max                    a column: its title, its text, and whether the largest (max) or the
    }}                                        smallest (min) is set in bold; lines "where field = value" choose rows

No figure is typed by hand: a test builds the pages anew and compares.
"""

import argparse
import ast
import json
import operator
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
NOTE = "<!-- Built by docs/results/build.py from data/ and pages/. -->\n\n"
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_REFERENCE = re.compile(r"(\w+)\[([^\]]*)\]\.(\w[\w .,'%@-]*\w|\w)(?=\s*(?:[-+*/):]|$))")


def rows_of(name: str) -> list[dict]:
    """Returns the rows of a file of figures."""
    file = HERE / "data" / f"{name}.json"
    if not file.exists():
        raise ValueError(f"no figures {file}")
    return json.loads(file.read_text())["rows"]


def row_of(name: str, key: str) -> dict:
    """Returns the one row in which every part of the key stands."""
    parts = [part.strip() for part in key.split(";")]
    found = [row for row in rows_of(name) if all(part in map(_text, row.values()) for part in parts)]
    if len(found) != 1:
        raise ValueError(f"{name}[{key}] must be one row, found {len(found)}")
    return found[0]


def _text(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def figure(expression: str) -> str:
    """Returns the text of a figure, or of arithmetic on figures: "mnist[consistency; 0.5].ACR:.3f"."""
    expression, _, spec = expression.rpartition(":")
    values = []

    def number(match) -> str:
        name, key, field = match.groups()
        row = row_of(name, key)
        if row.get(field) is None:
            raise ValueError(f"{name}[{key}] has no {field!r}; it has {list(row)}")
        values.append(row[field])
        return f"({row[field]!r})"

    written = _REFERENCE.sub(number, expression.strip())
    if not values:
        raise ValueError(f"{expression!r} names no figure")
    return format(_evaluate(ast.parse(written, mode="eval").body), spec)


def _evaluate(node):
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError(f"no arithmetic on figures: {ast.unparse(node)}")


def table(body: str) -> str:
    """Returns a Markdown table, from the lines after "table"."""
    name, *lines = [line.strip() for line in body.strip().splitlines()]
    rows = rows_of(name)
    wanted = [line.removeprefix("where ").split(" = ", 1) for line in lines if line.startswith("where ")]
    rows = [row for row in rows if all(_text(row.get(field)) == value for field, value in wanted)]
    if not rows:
        raise ValueError(f"no rows of {name} where {wanted}")
    columns = [column(rows, line) for line in lines if not line.startswith("where ")]
    numeric = [all(re.match(r"^[-+*\d.,]*\d", cell) or not cell for cell in cells) for _, cells in columns]
    head = "| " + " | ".join(title for title, _ in columns) + " |"
    rule = "|" + "|".join("---:" if right else "---" for right in numeric) + "|"
    body = ["| " + " | ".join(cells) + " |" for cells in zip(*(cells for _, cells in columns), strict=True)]
    return "\n".join([head, rule, *body])


def column(rows: list[dict], line: str) -> tuple[str, list[str]]:
    """Returns a column's title and cells."""
    title, _, shown = line.partition(": ")
    shown, best = re.fullmatch(r"(.*?)(?: (max|min))?", shown).groups()
    fields = re.findall(r"{([^:}]+)(?::[^}]*)?}", shown)
    unknown = [field for field in fields if not any(field in row for row in rows)]
    if unknown:
        raise ValueError(f"column {line!r}: no field {unknown}; there are {list(rows[0])}")
    cells = [_cell(row, shown) for row in rows]
    if best:
        known = [row[fields[0]] for row in rows if row.get(fields[0]) is not None]
        # What is printed alike is alike.
        top = _cell({fields[0]: {"max": max, "min": min}[best](known)}, re.search(r"{[^}]*}", shown).group())
        first = [_cell(row, re.search(r"{[^}]*}", shown).group()) for row in rows]
        cells = [f"**{cell}**" if one == top else cell for cell, one in zip(cells, first, strict=True)]
    return title, cells


def _cell(row: dict, shown: str) -> str:
    """A row's cell; empty where it has no such figure."""
    missing = False

    def value(match) -> str:
        nonlocal missing
        found = row.get(match.group(1))
        missing |= found is None
        return "" if found is None else format(found, match.group(2) or "")

    text = re.sub(r"{([^:}]+)(?::([^}]*))?}", value, shown)
    return "" if missing else text


def build(source: str) -> str:
    """Returns a page from its words."""

    def fill(match) -> str:
        return figure(match.group(1))

    source = re.sub(r"{{table (.+?)\n}}", lambda match: table(match.group(1)), source, flags=re.DOTALL)
    return NOTE + re.sub(r"{{([^{}\n]+)}}", fill, source)


def pages() -> dict[Path, str]:
    """Returns every page, {where it belongs: its text}."""
    found = {}
    for source in sorted((HERE / "pages").glob("*.md")):
        try:
            # What belongs beside the folder of results, and not in it.
            place = HERE.parent if source.name == "models.md" else HERE
            found[place / source.name] = build(source.read_text())
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    return found


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is not what is built")
    check = parser.parse_args(arguments).check
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if not check:
            path.write_text(text)
        print(f"{path}: {'is not what is built' if check else 'built'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
