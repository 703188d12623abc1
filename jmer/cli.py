"""The `jmer` command.

Exit status: 0 done, 1 it could not be done (one line on stderr says why), 2 wrong usage.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  jmer train toy/gmu                                     the embedded default, no data needed
  jmer train ravdess/gmu --data RAVDESS --set seed=1     a shipped recipe on your copy of a corpus
  jmer evaluate gmu/ravdess --data RAVDESS --split all   shipped weights on every clip of a folder
  jmer predict gmu/ravdess clip.wav --json out.json      shipped weights on a clip of your own
  jmer describe gmu                                      fields and their defaults
  jmer data check ravdess --data RAVDESS                 is the corpus complete?
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments, those of the process if None; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        status = options.run(options) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever reads us, such as `head`, has seen enough; Python must not try to write the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, FloatingPointError) as fault:
        print(f'jmer {options.command}: {fault}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'jmer {options.command}: interrupted', file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        'jmer', description='A JAX model zoo for multimodal emotion recognition.', epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument('--version', action='version', version=version('jmer'))
    commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def command(name: str, run: Callable, help: str, example: str, within=commands):
        made = within.add_parser(name, help=help, description=help, epilog=f'example:\n  {example}',
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
        made.set_defaults(run=run)
        return made

    listing = command('list', list_, 'List the models of the zoo.', 'jmer list --tag gated')
    listing.add_argument('--family', help='utterance, dialogue or speech: what goes in')
    listing.add_argument('--tag', help="a word of the survey literature, such as 'late fusion'")

    describing = command('describe', describe, 'Describe a model, published weights or a run, as JSON.',
                         'jmer describe runs/toy/gmu')
    describing.add_argument('what', metavar='NAME|CHECKPOINT|RUN')

    training = command('train', train, 'Train an experiment, or go on with one that was interrupted.',
                       'jmer train ravdess/gmu --data RAVDESS --set optimizer.rate=3e-4 epochs=20')
    training.add_argument('experiment', metavar='EXPERIMENT', help="a recipe file, or '<dataset>/<model>'")
    training.add_argument('--set', nargs='+', action='extend', default=[], metavar='a.b=c',
                          help='options of the experiment to change')
    training.add_argument('--data', type=Path, metavar='DIR', help="folder of the corpus, as its owners' have it")
    training.add_argument('--workdir', type=Path, metavar='DIR', help='folder of the run (runs/<experiment>)')
    training.add_argument('--via', choices=('jit', 'pmap'), default='jit', help='how a step is compiled')
    training.add_argument('--devices', type=int, metavar='N', help='use the first N devices (all)')
    training.add_argument('--processes', metavar='HOST:PORT,COUNT,INDEX',
                          help="one process of several: where process 0 listens, how many, which one; "
                               "'auto' asks the cluster")

    evaluating = command('evaluate', evaluate, 'Evaluate published weights or a finished run.',
                         'jmer evaluate runs/ravdess/gmu --data RAVDESS --split test --json result.json')
    evaluating.add_argument('checkpoint', metavar='CHECKPOINT|RUN')
    evaluating.add_argument('--data', type=Path, metavar='DIR', help='folder of the corpus')
    evaluating.add_argument('--split', default='test', metavar='S',
                            help="'train', 'validation' or 'test' as in training, a part of the corpus such as "
                                 "'fold3', or 'all' that is found (test)")
    evaluating.add_argument('--json', type=Path, metavar='FILE', help='metrics and predictions')

    predicting = command('predict', predict, 'Predict clips of your own, or a part of a corpus.',
                         'jmer predict gmu/ravdess me.wav me.npz you.wav --json out.json')
    predicting.add_argument('checkpoint', metavar='CHECKPOINT|RUN')
    predicting.add_argument('inputs', nargs='+', metavar='INPUT',
                            help='sound files, npz files of streams (files of one name are one clip); '
                                 "or parts of the corpus, such as 'test' (see --split of evaluate)")
    predicting.add_argument('--data', type=Path, metavar='DIR', help='folder of the corpus')
    predicting.add_argument('--json', type=Path, metavar='FILE', help='all probabilities')

    data = commands.add_parser('data', help='Look at a corpus.').add_subparsers(
        dest='data_command', required=True, metavar='COMMAND')
    checking = command('check', check, 'Report what a corpus holds and what is wrong with it.',
                       'jmer data check ravdess --data RAVDESS', within=data)
    checking.add_argument('dataset', metavar='DATASET')
    checking.add_argument('--data', type=Path, metavar='DIR', help='folder of the corpus')

    publishing = command('publish', publish, 'Make weights to be shared from a finished run.',
                         'jmer publish runs/gmu checkpoints/gmu/ravdess --results runs/fold0 runs/fold1')
    publishing.add_argument('run_folder', metavar='RUN')
    publishing.add_argument('folder', type=Path, metavar='FOLDER')
    publishing.add_argument('--results', nargs='+', default=[], metavar='RUN',
                            help='finished runs of the same recipe whose test results go onto the card')
    publishing.add_argument('--store', choices=('float32', 'float16', 'bfloat16'), default='float32')

    benching = command('bench', bench, 'Measure what the figures of the documentation claim.',
                       'jmer bench import first-step')
    benching.add_argument('names', nargs='*', metavar='BENCHMARK', help='all that can run here if none is named')
    benching.add_argument('--data', type=Path, metavar='DIR', help='folder of RAVDESS, for input-wait')
    return top


def list_(options: argparse.Namespace) -> None:
    from jmer import zoo

    for name in zoo.list_models(options.family, options.tag):
        _console().print(f'[bold]{name:12}[/] {zoo.family(name):10} {zoo.about(name)}', highlight=False)
        _console().print(f'{"":23} {", ".join(zoo.module(name).TAGS)}', style='dim', highlight=False)


def describe(options: argparse.Namespace) -> None:
    from jmer import checkpoint, shipped, zoo

    if options.what in zoo.list_models():
        print(json.dumps(zoo.profile(options.what), indent=2))
        return
    folder = shipped.find('checkpoints', options.what)
    if not (folder / 'experiment.json').exists():
        variables, card = checkpoint.load(folder)
        print(json.dumps({'step': card.get('selected', {}).get('step'),
                          'params_sha256': checkpoint.fingerprint(variables), 'card': _brief(card)}, indent=2))
        return
    print(json.dumps(_describe_run(folder), indent=2))


def _describe_run(folder: Path) -> dict[str, Any]:
    """The newest state of a run, finished or not; its card where it has one."""
    from jmer import checkpoint

    saved = checkpoint.Run(folder)
    latest = saved.latest()
    described: dict[str, Any] = {'step': latest, 'best_step': saved.best()}
    if latest is not None:
        # Named as in published weights, so that equal weights have equal fingerprints.
        params = {f'params/{name}': x for name, x in saved.read(latest, 'state/params').items()}
        described['params_sha256'] = checkpoint.fingerprint(params | saved.read(latest, 'state/model_state'))
        described['state_sha256'] = checkpoint.fingerprint(saved.read(latest, 'state'))
    finished = (folder / 'weights' / 'card.json').exists()
    described['finished'] = finished
    described['card'] = _brief(checkpoint.read_json(folder / 'weights' / 'card.json') if finished
                               else checkpoint.read_json(folder / 'experiment.json'))
    return described


def _brief(card: dict[str, Any]) -> dict[str, Any]:
    """The card without its long lists of numbers and names."""
    short = dict(card)
    if 'standardisation' in card:
        short['standardisation'] = {name: f'{len(m["mean"])} features' for name, m in card['standardisation'].items()}
    if 'groups' in card:
        short['groups'] = {name: f'{len(groups)} groups' for name, groups in card['groups'].items()}
    return short


def train(options: argparse.Namespace) -> None:
    from jmer import parallel

    if options.processes:
        parallel.start_processes(*_processes(options.processes))
    _cache_compilations()
    import jax

    from jmer.data.load import load
    from jmer.train import experiment, loop, report

    chosen = experiment.override(experiment.load(options.experiment), options.set)
    corpus = load(chosen.data.name, options.data, chosen.data.streams)
    devices = jax.devices()
    if options.devices is not None and not 1 <= options.devices <= len(devices):
        raise ValueError(f'--devices: found {options.devices}, expected 1 to {len(devices)}')
    workdir = options.workdir or Path('runs', _recipe(options.experiment))
    console = _console(quiet=not parallel.is_main_process())
    card = loop.train(chosen, corpus, workdir, via=options.via, mesh=parallel.mesh(devices[:options.devices]),
                      console=console, command=_command(options))
    report.print_card(card, corpus, console)
    console.print(f'weights and card: {workdir / "weights"}   log: {workdir / "log.jsonl"}', highlight=False)


def _processes(text: str) -> tuple:
    if text == 'auto':
        return None, None, None
    parts = text.split(',')
    if len(parts) != 3 or not parts[1].isdigit() or not parts[2].isdigit():
        raise ValueError(f'--processes: found {text!r}, expected HOST:PORT,COUNT,INDEX or auto')
    return parts[0], int(parts[1]), int(parts[2])


def _recipe(experiment: str) -> str:
    """'<dataset>/<model>' of a recipe, however it was named."""
    return '/'.join(Path(experiment.removesuffix('.py')).resolve().parts[-2:]).strip('/')


def _command(options: argparse.Namespace) -> str:
    """The command that repeats a run, without the folders of this machine."""
    words = ['jmer', 'train', _recipe(options.experiment)]
    words += ['--data', 'DIR'] if options.data else []
    words += ['--set', *options.set] if options.set else []
    words += ['--via', options.via] if options.via != 'jit' else []
    return shlex.join(words)


def evaluate(options: argparse.Namespace) -> None:
    from jmer.train import report, use

    _cache_compilations()
    result = use.evaluate(options.checkpoint, options.data, options.split)
    report.print_result(result, _console())
    _write(options.json, result)


def predict(options: argparse.Namespace) -> None:
    from jmer.train import report, use

    _cache_compilations()
    if options.data or not any(Path(name).suffix or Path(name).exists() for name in options.inputs):
        predictions = [p for part in options.inputs
                       for p in use.evaluate(options.checkpoint, options.data, part)['predictions']]
    else:
        predictions = use.predict(options.checkpoint, options.inputs)
    report.print_predictions(predictions, _console())
    _write(options.json, {'checkpoint': options.checkpoint, 'predictions': predictions})


def check(options: argparse.Namespace) -> int:
    from jmer.data import check

    report = check.check(options.dataset, options.data)
    check.show(report, _console())
    return 1 if report.problems else 0


def publish(options: argparse.Namespace) -> None:
    from jmer.train import use

    card = use.publish(options.run_folder, options.folder, options.results, options.store)
    print(f'{options.folder}: {card["model"]}, {card["parameters"]} parameters, {card["params_sha256"]}')


def bench(options: argparse.Namespace) -> None:
    from jmer.bench import run

    run(options.names, options.data, _console())


def _console(quiet: bool = False):
    from rich.console import Console

    return Console(quiet=quiet, soft_wrap=not sys.stdout.isatty())


def _write(path: Path | None, value: Any) -> None:
    from jmer import checkpoint

    if path is None:
        return
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(json.dumps(value) + '\n')   # /dev/stdout, a pipe: written to, and never replaced
    else:
        checkpoint.write_json(path, value)


def _cache_compilations() -> None:
    """Keeps compiled programs for the next run, which then starts in a fraction of the time."""
    import jax

    from jmer.data.load import cache

    jax.config.update('jax_compilation_cache_dir', str(cache() / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


if __name__ == '__main__':
    sys.exit(main())
