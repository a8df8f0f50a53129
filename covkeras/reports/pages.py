"""Tables for the terminal, Markdown and HTML, figures, and pages made of them: plain, readable in black and white and
by the colour-blind."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np

# Okabe and Ito's colours, each with a line style of its own.
STYLES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#000000", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", (0, (8, 2))),
    ("#56B4E9", (0, (1, 1, 4, 1))),
)


def style_of(i: int) -> tuple:
    """The colour and line style of the i-th of many: no two of the first 49 have both in common."""
    count = len(STYLES)
    return STYLES[i % count][0], STYLES[(i + i // count) % count][1]


def plain(rows: list[list[str]]) -> str:
    """Lays a table out for the terminal: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [not _is_number(rows[-1][i]) for i in range(len(widths))]
    pad = [str.ljust if side else str.rjust for side in left]
    return "\n".join("  ".join(p(c, w) for p, c, w in zip(pad, row, widths, strict=True)).rstrip() for row in rows)


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|" + "|".join("---" if not _is_number(cell) else "---:" for cell in rows[-1]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def html_table(rows: list[list[str]], numbers: bool = True) -> str:
    """`numbers`: columns of numbers, told by their last row, go to the right."""
    right = [numbers and _is_number(cell) for cell in rows[-1]]

    def line(row, tag):
        cells = (f"<{tag}{' class=n' if r else ''}>{html.escape(c)}</{tag}>" for c, r in zip(row, right, strict=True))
        return "<tr>" + "".join(cells) + "</tr>"

    return "<table>" + line(rows[0], "th") + "".join(line(r, "td") for r in rows[1:]) + "</table>"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def new_figure(panels: int = 1, width: float = 6.4, columns: int = 0):
    """Returns a figure of panels, and its axes (one, or a flat array).

    panels: how many. width: of a single one, in inches. columns: panels side by side; 0 is all of them.
    """
    # The object interface: pyplot would pick a display and keep every figure alive.
    from matplotlib.figure import Figure

    columns = columns or panels
    rows = -(-panels // columns)
    made = Figure(figsize=(4.2 * columns if panels > 1 else width, 4.2 * rows), layout="constrained")
    axes = np.atleast_1d(made.subplots(rows, columns)).ravel()
    for a in axes[panels:]:
        a.remove()
    for a in axes[:panels]:
        a.spines[["top", "right"]].set_visible(False)
        a.grid(alpha=0.25)
    return made, axes[:panels] if panels > 1 else axes[0]


def legend(figure, axes, size: float | None = None) -> None:
    """Puts the legend inside the axes, or, of more than eight curves, below them in a figure that is taller for it.

    size: of the font inside; by default matplotlib's.
    """
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= 8:
        axes.legend(frameon=False, fontsize=size)
        return
    width, height = figure.get_size_inches()
    # A letter of 6 points takes about .055 inches.
    columns = max(1, min(3, int(1.5 * width / (0.6 + 0.055 * max(map(len, labels))))))
    rows = -(-len(labels) // columns)
    figure.set_size_inches(1.5 * width, height + 0.13 * rows + 0.3)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=6)


def png(figure) -> bytes:
    """Returns the figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def svg(figure) -> bytes:
    """Returns the figure as SVG: sharp at any size, the same bytes for the same figure."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "covkeras"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def picture(name: str, data: bytes) -> str:
    """Returns an image tag that holds the PNG itself: the page is one file."""
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def page(title: str, parts: Sequence[str]) -> str:
    """Returns an HTML page of the parts, which are HTML."""
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "img{max-width:100%}table{border-collapse:collapse;margin:1rem 0;font-size:.9rem;display:block;overflow-x:auto}"
        "td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left}"
        "th{vertical-align:bottom}.n{text-align:right}"
        ".note{color:#555;font-size:.9rem}"
    )
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
    return head + f"<body><h1>{html.escape(title)}</h1>" + "\n".join(parts) + "</body></html>\n"
