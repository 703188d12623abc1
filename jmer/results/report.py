"""The report on finished runs: one self-contained HTML page, and its figures as PNG files.

    report.write([Path('runs/gmu'), Path('runs/mult')], Path('report.html'), Path('report'))

The page needs no script and no other file: figures are embedded. Runs of one corpus and target are compared
in one chapter; parts that make no sense for a target, or for which a run has no data, are left out. Every
name is escaped, since cards come from anywhere.

Means and deviations are over a system's finished runs (folds and seeds). Intervals are a bootstrap over the
speakers, videos or dialogues of all test sides together (`jmer.significance`), where every seed was tested
on the same items.
"""

from collections.abc import Sequence
from pathlib import Path

from jmer.results.page import Picture, escape, render
from jmer.results.sections import chapter
from jmer.results.systems import chapters

NOTE = ('Written by <code>jmer report</code>. Weights were chosen without the test side, which was opened once a run, '
        'after that.')


def write(runs: Sequence[Path], out: Path, plots_dir: Path | None) -> None:
    """Writes the page on all finished runs in these folders to `out`, and its figures to `plots_dir`, if any.

    Errors as `systems.chapters`; ValueError also where Matplotlib is missing.
    """
    made = [(escape(f'{systems[0].corpus}: {systems[0].target.name}'), chapter(systems)) for systems in chapters(runs)]
    pictures = [part for _, sections in made for section in sections for part in section.parts
                if isinstance(part, Picture)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(made, NOTE), 'utf-8')
    if plots_dir is not None:
        plots_dir.mkdir(parents=True, exist_ok=True)
        for name, picture in zip(_unlike([picture.name for picture in pictures]), pictures, strict=True):
            (plots_dir / f'{name}.png').write_bytes(picture.data)


def _unlike(names: Sequence[str]) -> list[str]:
    """The names, the second of its kind with a number: labels may differ in what a file's name leaves out."""
    return [f'{name}-{names[:k].count(name) + 1}' if name in names[:k] else name for k, name in enumerate(names)]


