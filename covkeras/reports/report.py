"""Report: sections of words, figures and a table, written as one HTML page, Markdown, pictures and data."""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from covkeras.reports.pages import html_table, markdown, page, picture, plain, png, svg


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of a report, in the order of its fields.

    Attributes:
        title: its heading; "" has none. text: a paragraph. figures: {file name: matplotlib figure}.
        rows: a table, its header first. note: a paragraph in small below it.
        words: the table is of words: nothing in it is set as a number, and the terminal does not show it.
        quiet: the terminal does not show the table.
    """

    title: str = ""
    text: str = ""
    figures: Mapping[str, object] = dataclasses.field(default_factory=dict)
    rows: Sequence[Sequence[str]] = ()
    note: str = ""
    words: bool = False
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """A report: its title, a caption that says what was measured, its sections, and the same figures as data.

    data: what results.json holds, for other programs and for docs/results; None writes none.
    """

    title: str
    caption: str
    sections: Sequence[Section]
    data: Mapping | None = None

    def write(self, folder: Path, vector: bool = False, titled: bool = False) -> str:
        """Writes index.html (one file, its pictures inside), table.md, results.json and every figure.

        Args:
            folder: made if need be. vector: each figure as SVG too. titled: the terminal's tables have their titles.

        Returns:
            The tables, laid out for the terminal.
        """
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {name: png(figure) for section in self.sections for name, figure in section.figures.items()}
        for section in self.sections:
            for name, figure in section.figures.items():
                (folder / f"{name}.png").write_bytes(pictures[name])
                if vector:
                    (folder / f"{name}.svg").write_bytes(svg(figure))
        parts = [f"<p>{html.escape(self.caption)}</p>"]
        parts += [part for section in self.sections for part in _html(section, pictures)]
        (folder / "index.html").write_text(page(self.title, parts), encoding="utf-8")
        text = [f"# {self.title}", self.caption, *(part for section in self.sections for part in _markdown(section))]
        (folder / "table.md").write_text("\n\n".join(filter(None, text)) + "\n", encoding="utf-8")
        if self.data is not None:
            (folder / "results.json").write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        shown = [s for s in self.sections if s.rows and not (s.words or s.quiet)]
        return "\n\n".join((f"{s.title}\n" if titled else "") + plain(s.rows) for s in shown)


def _html(section: Section, pictures: Mapping[str, bytes]) -> list[str]:
    parts = [f"<h2>{html.escape(section.title)}</h2>"] if section.title else []
    parts += [f"<p>{html.escape(section.text)}</p>"] if section.text else []
    parts += [picture(section.title or name, pictures[name]) for name in section.figures]
    parts += [html_table(section.rows, numbers=not section.words)] if section.rows else []
    return parts + ([f"<p class=note>{html.escape(section.note)}</p>"] if section.note else [])


def _markdown(section: Section) -> list[str]:
    parts = [f"## {section.title}" if section.title else "", section.text]
    parts += [f"![{section.title or name}]({name}.png)" for name in section.figures]
    return [*parts, markdown(section.rows) if section.rows else "", section.note]
