"""A self-contained page of HTML: its type, its tables, and its figures in place. Knows nothing of what it shows."""

import base64
import html
import re
from collections.abc import Sequence
from typing import Any, NamedTuple


class Picture(NamedTuple):
    """A figure of the page. name: of its file. caption: HTML."""

    name: str
    data: bytes
    caption: str


class Section(NamedTuple):
    """A part of the page: HTML and pictures in their order; neighbouring pictures stand side by side."""

    heading: str
    parts: Sequence[str | Picture]


def render(chapters: Sequence[tuple[str, Sequence[Section]]], note: str) -> str:
    """The whole page, from the heading and the sections of every chapter; headings and note are HTML."""
    many = len(chapters) > 1
    headings = ' and '.join(heading for heading, _ in chapters)
    body = ''.join((f'<h2 class="chapter">{heading}</h2>' if many else '') + ''.join(map(_section, sections))
                   for heading, sections in chapters)
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{headings}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n<header><h1>{headings}</h1>'
            f'<p class="note">{note}</p></header>\n{body}</main>\n</body>\n</html>\n')


def _section(section: Section) -> str:
    blocks: list[str] = []
    pictures: list[Picture] = []
    for part in [*section.parts, '']:
        if isinstance(part, Picture):
            pictures.append(part)
            continue
        if pictures:
            blocks.append(f'<div class="pictures">{"".join(map(_embedded, pictures))}</div>\n')
            pictures = []
        blocks.append(part)
    return f'<section>\n<h3>{escape(section.heading)}</h3>\n{"".join(blocks)}</section>\n'


def _embedded(picture: Picture) -> str:
    data = base64.b64encode(picture.data).decode()
    words = re.sub(r'<[^>]*>', '', picture.caption)
    width = int.from_bytes(picture.data[16:20], 'big') // 2   # PNG's header; figures have two dots a CSS pixel
    wide = ' class="wide"' if width > 470 else ''
    return (f'<figure{wide}><img src="data:image/png;base64,{data}" width="{width}" alt="{words}">'
            f'<figcaption>{picture.caption}</figcaption></figure>')


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str, words: int = 1) -> str:
    """A table that scrolls where the page is narrow. Cells are HTML; kind: 'setup' (words) or 'figures'.

    words: how many columns on the left hold no numbers.
    """
    def line(cells, tag):
        return '<tr>' + ''.join(f'<{tag if k else "th"}{"" if k < words else " class=n"}>{cell}</{tag if k else "th"}>'
                                for k, cell in enumerate(cells)) + '</tr>'

    body = '\n'.join(line(row, 'td') for row in rows)
    return (f'<div class="table"><table class="{kind}"><thead>{line(head, "th")}</thead>\n<tbody>{body}</tbody>'
            '</table></div>\n')


def escape(text: Any) -> str:
    """Text as HTML."""
    return html.escape(str(text))


CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1c1c1c; font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto,
  'Helvetica Neue', Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; font-weight: 650; letter-spacing: -.01em; }
h2.chapter { font-size: 1.5rem; margin: 3.5rem 0 0; padding-top: 1rem; border-top: 3px solid #1c1c1c; }
h3 { font-size: 1.15rem; margin: 2.6rem 0 .7rem; font-weight: 650; }
h4 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { max-width: 42rem; margin: .6rem 0; }
.note, figcaption, small { color: #595959; }
.note, figcaption { font-size: .875rem; line-height: 1.45; }
small { font-size: .8em; white-space: nowrap; }
code { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .925rem; line-height: 1.4; }
th, td { padding: .34rem .9rem .34rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; }
thead th { border-bottom: 1.5px solid #1c1c1c; vertical-align: bottom; }
tbody th { font-weight: 400; }
.figures .n { text-align: right; white-space: nowrap; padding: .34rem 0 .34rem 1.3rem; }
.figures thead .n { white-space: normal; }
.setup { width: 100%; }
.setup th:first-child { color: #595959; white-space: nowrap; }
.setup td { min-width: 9rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.6rem 2rem;
  align-items: start; margin: 1rem 0; }
figure { margin: 0; break-inside: avoid; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .35rem; max-width: 29rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-size: .925rem; }
@media print {
  @page { margin: 16mm 14mm; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h3 { break-after: avoid; }
  .table { overflow: visible; }
  .pictures { grid-template-columns: 1fr 1fr; }
  tr, thead { break-inside: avoid; }
}
@media (max-width: 30rem) {
  main { padding-top: 1.2rem; }
  h1 { font-size: 1.5rem; }
}
"""
