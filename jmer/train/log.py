"""What a run tells while it runs: JSON lines, TensorBoard scalars, and the terminal."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from jmer import parallel


class Log:
    """Writes `log.jsonl` and `tensorboard/` in the folder of every seed, and a progress bar or plain lines.

    Lines behind `step` (written by a run that was cut off after its last checkpoint) are dropped, so that
    a resumed run has the log of one that was never interrupted. Only the main process writes.
    """

    def __init__(self, folders: Sequence[Path], step: int, epochs: int, epoch: int, console: Console):
        self._paths, main = [folder / 'log.jsonl' for folder in folders], parallel.is_main_process()
        for path in self._paths if main else ():
            path.parent.mkdir(parents=True, exist_ok=True)
            _keep(path, step)
        self._scalars = [SummaryWriter(str(folder / 'tensorboard'), purge_step=step + 1, write_to_disk=main)
                         for folder in folders]
        self._console = console
        self._progress = Progress(
            TextColumn('epoch'), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(),
            TextColumn('{task.description}'), console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task('', total=epochs, completed=epoch)

    def __enter__(self) -> 'Log':
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
        for scalars in self._scalars:
            scalars.close()

    def epoch(self, epoch: int) -> None:
        """One more epoch is done."""
        self._progress.update(self._task, completed=epoch)

    def evaluation(self, seed: int, step: int, epoch: int, figures: Mapping[str, float]) -> None:
        """The figures of an evaluation of the seed in the folder with this number."""
        if not parallel.is_main_process():
            return
        with self._paths[seed].open('a') as file:
            file.write(json.dumps({'step': step, 'epoch': epoch, **_finite(figures)}) + '\n')
        for name, value in figures.items():
            if math.isfinite(value):
                self._scalars[seed].add_scalar(name, value, step)

    def tell(self, step: int, epoch: int, headline: str) -> None:
        """What a person wants to see of an evaluation."""
        self._progress.update(self._task, description=headline)
        if not self._console.is_terminal:
            self._console.print(f'epoch {epoch:4d}  step {step:6d}  {headline}', highlight=False)


def read(path: Path) -> list[dict]:
    """The lines of a log; a last line that was cut off is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _keep(path: Path, step: int) -> None:
    """Drops the lines behind `step`, in one move: nothing is lost to a kill in between."""
    part = path.with_name(f'.{path.name}.part')
    part.write_text(''.join(json.dumps(line) + '\n' for line in read(path) if line['step'] <= step))
    part.replace(path)


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
