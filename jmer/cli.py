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
  jmer compare runs/gmu runs/mult                        how far apart two systems are, how surely
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
    """All commands; the options of each stand in front of what it does."""
    top = argparse.ArgumentParser(
        'jmer', description='A JAX model zoo for multimodal emotion recognition.', epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument('--version', action='version', version=version('jmer'))
    commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def command(name: str, run: Callable, options: Callable, help: str, example: str, within=commands) -> None:
        made = within.add_parser(name, help=help, description=help, epilog=f'example:\n  {example}',
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
        made.set_defaults(run=run)
        options(made)

    command('list', list_, _list_options, 'List the models of the zoo.', 'jmer list --tag gated')
    command('describe', describe, _describe_options, 'Describe a model, published weights or a run, as JSON.',
            'jmer describe runs/toy/gmu')
    command('train', train, _train_options, 'Train an experiment, or go on with one that was interrupted.',
            'jmer train ravdess/gmu --data RAVDESS --set optimizer.rate=3e-4 epochs=20')
    command('evaluate', evaluate, _evaluate_options, 'Evaluate published weights or a finished run.',
            'jmer evaluate runs/ravdess/gmu --data RAVDESS --split test --json result.json')
    command('predict', predict, _predict_options, 'Predict clips of your own, or a part of a corpus.',
            'jmer predict gmu/ravdess me.wav me.npz you.wav --json out.json')
    command('robustness', robustness, _robustness_options,
            'Measure how figures fall with what is missing or disturbed.',
            'jmer robustness runs/ravdess/gmu --data RAVDESS')
    command('contribution', contribution, _measuring_options, 'Measure which modality does the work.',
            'jmer contribution runs/ravdess/gmu --data RAVDESS')
    command('compare', compare, _compare_options, 'Compare two systems on the test items they share.',
            'jmer compare runs/gmu runs/mult --json out.json')
    command('report', report_, _report_options, 'Write one page on finished runs, with pictures.',
            'jmer report runs/gmu runs/mult --out report.html')
    command('results', results, _results_options, 'Write RESULTS.md from the cards in checkpoints/.',
            'jmer results --check')
    data = commands.add_parser('data', help='Look at a corpus.').add_subparsers(
        dest='data_command', required=True, metavar='COMMAND')
    command('check', check, _check_options, 'Report what a corpus holds and what is wrong with it.',
            'jmer data check ravdess --data RAVDESS', within=data)
    command('publish', publish, _publish_options, 'Make weights to be shared from a finished run.',
            'jmer publish runs/gmu checkpoints/gmu/ravdess --results runs/fold0 runs/fold1')
    command('import-author', import_author, _import_author_options,
            "Turn the authors' checkpoint of a model into jmer's weights.",
            'jmer import-author gmu gmu.pt --set classes=23 hidden=512 --out weights/gmu')
    command('bench', bench, _bench_options, 'Measure what the figures of the documentation claim.',
            'jmer bench import first-step')
    return top


def _list_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('--family', help='utterance, dialogue or speech: what goes in')
    it.add_argument('--tag', help="a word of the survey literature, such as 'late fusion'")


def list_(options: argparse.Namespace) -> None:
    from jmer import zoo

    for name in zoo.list_models(options.family, options.tag):
        _console().print(f'[bold]{name:12}[/] {zoo.family(name):10} {zoo.about(name)}', highlight=False)
        _console().print(f'{"":23} {", ".join(zoo.module(name).TAGS)}', style='dim', highlight=False)


def _describe_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('what', metavar='NAME|CHECKPOINT|RUN')


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
    """The newest state of a run, finished or not, by seed; its cards where it has some."""
    from jmer import checkpoint

    saved = checkpoint.Run(folder)
    latest = saved.latest()
    described: dict[str, Any] = {'step': latest}
    if latest is not None:
        # Named as in published weights, so that equal weights have equal fingerprints.
        state, chosen = saved.read(latest, 'state'), saved.read(latest, 'progress/chosen')
        steps = saved.read(latest, 'progress')['step'].tolist()
        described['seeds'] = [{'chosen_step': step, 'chosen_sha256': checkpoint.fingerprint(
            {name: x[k] for name, x in chosen.items()})} for k, step in enumerate(steps)]
        described['state_sha256'] = checkpoint.fingerprint(state)
    cards = sorted(folder.glob('**/weights/card.json'))
    described['finished'] = bool(cards)
    described['experiment'] = checkpoint.read_json(folder / 'experiment.json')
    described['cards'] = {str(card.parents[1].relative_to(folder)): _brief(checkpoint.read_json(card))
                          for card in cards}
    return described


def _brief(card: dict[str, Any]) -> dict[str, Any]:
    """The card without its long lists of numbers and names."""
    short = dict(card)
    if 'standardisation' in card:
        short['standardisation'] = {name: f'{len(m["mean"])} features' for name, m in card['standardisation'].items()}
    if 'groups' in card:
        short['groups'] = {name: f'{len(groups)} groups' for name, groups in card['groups'].items()}
    return short


def _train_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('experiments', nargs='+', metavar='EXPERIMENT',
                    help="a recipe file, or '<dataset>/<model>'; ':paper' behind it for the authors' sizes; "
                         'several are trained one after the other')
    it.add_argument('--set', nargs='+', action='extend', default=[], metavar='a.b=c',
                    help='options of the experiment to change')
    it.add_argument('--data', type=Path, metavar='DIR', help="folder of the corpus, as its owners' have it")
    it.add_argument('--workdir', type=Path, metavar='DIR', help='folder of the run (runs/<experiment>); '
                                                                 'of several, the folder of their folders')
    it.add_argument('--seeds', type=int, metavar='N', help='train N seeds in one program (1)')
    it.add_argument('--folds', choices=('parts', 'groups'),
                    help='let every part of the corpus judge once, or every group (speaker, video, dialogue)')
    it.add_argument('--also-test-selected', action='store_true',
                    help='keep apart what choosing the epoch on the test side would have given')
    it.add_argument('--via', choices=('jit', 'pmap'), default='jit', help='how a step is compiled')
    it.add_argument('--devices', type=int, metavar='N', help='use the first N devices (all)')
    it.add_argument('--processes', metavar='HOST:PORT,COUNT,INDEX',
                    help="one process of several: where process 0 listens, how many, which one; "
                         "'auto' asks the cluster")


def train(options: argparse.Namespace) -> None:
    from jmer import parallel

    if options.processes:
        parallel.start_processes(*_processes(options.processes))
    _prepare()
    import jax

    devices = jax.devices()
    if options.devices is not None and not 1 <= options.devices <= len(devices):
        raise ValueError(f'--devices: found {options.devices}, expected 1 to {len(devices)}')
    mesh = parallel.mesh(devices[:options.devices])
    console = _console(quiet=not parallel.is_main_process())
    for name in options.experiments:
        folder = _recipe(name).replace(':', '-')
        workdir = options.workdir or Path('runs', folder)
        if options.workdir and len(options.experiments) > 1:
            workdir = options.workdir / folder
        _train(name, workdir, options, mesh, console)


def _train(name: str, workdir: Path, options: argparse.Namespace, mesh, console) -> None:
    from jmer.train import experiment, inputs, loop, report

    chosen = experiment.override(experiment.load(name), _settings(options))
    corpus = inputs.read(chosen.data, options.data)
    cards = loop.train(chosen, corpus, workdir, via=options.via, mesh=mesh, console=console,
                       command=_command(name, options))
    report.print_cards(cards, corpus, console)
    results = [card.parents[1] for card in sorted(workdir.glob('**/weights/card.json'))]
    where = workdir if len(results) == 1 else f'{results[0]} and {len(results) - 1} more'
    console.print(f'weights, predictions and log: {where}', highlight=False)


def _settings(options: argparse.Namespace) -> list[str]:
    """The options of `train` that are short for a setting, and the settings."""
    short = {'seeds': options.seeds, 'folds': options.folds, 'also_test_selected': options.also_test_selected}
    return [f'{name}={value}' for name, value in short.items() if value] + options.set


def _processes(text: str) -> tuple:
    if text == 'auto':
        return None, None, None
    parts = text.split(',')
    if len(parts) != 3 or not parts[1].isdigit() or not parts[2].isdigit():
        raise ValueError(f'--processes: found {text!r}, expected HOST:PORT,COUNT,INDEX or auto')
    return parts[0], int(parts[1]), int(parts[2])


def _recipe(experiment: str) -> str:
    """'<dataset>/<model>' (and ':paper') of a recipe, however it was named."""
    file, colon, function = experiment.partition(':')
    return '/'.join(Path(file.removesuffix('.py')).resolve().parts[-2:]).strip('/') + colon + function


def _command(name: str, options: argparse.Namespace) -> str:
    """The command that repeats a run, without the folders of this machine."""
    words = ['jmer', 'train', _recipe(name)]
    words += ['--data', 'DIR'] if options.data else []
    words += ['--seeds', str(options.seeds)] if options.seeds else []
    words += ['--folds', options.folds] if options.folds else []
    words += ['--also-test-selected'] if options.also_test_selected else []
    words += ['--set', *options.set] if options.set else []
    words += ['--via', options.via] if options.via != 'jit' else []
    return shlex.join(words)


def _evaluate_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('checkpoint', metavar='CHECKPOINT|RUN')
    it.add_argument('--data', type=Path, metavar='DIR', help='folder of the corpus')
    it.add_argument('--split', default='test', metavar='S',
                    help="'train', 'validation' or 'test' as in training, a part of the corpus such as "
                         "'fold3', or 'all' that is found (test)")
    it.add_argument('--json', type=Path, metavar='FILE', help='metrics and predictions')


def evaluate(options: argparse.Namespace) -> None:
    from jmer.train import report, use

    _prepare()
    result = use.evaluate(options.checkpoint, options.data, options.split)
    report.print_result(result, _console())
    _write(options.json, result)


def _predict_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('checkpoint', metavar='CHECKPOINT|RUN')
    it.add_argument('inputs', nargs='+', metavar='INPUT',
                    help='sound files, npz files of streams (files of one name are one clip); '
                         "or parts of the corpus, such as 'test' (see --split of evaluate)")
    it.add_argument('--data', type=Path, metavar='DIR', help='folder of the corpus')
    it.add_argument('--online', action='store_true',
                    help='say of every turn of a conversation what was known when it was said')
    it.add_argument('--json', type=Path, metavar='FILE', help='all probabilities')


def predict(options: argparse.Namespace) -> None:
    from jmer.train import report, use

    _prepare()
    if options.data or not any(Path(name).suffix or Path(name).exists() for name in options.inputs):
        if options.online:
            raise ValueError('--online: found parts of a corpus, expected files of conversations')
        predictions = [p for part in options.inputs
                       for p in use.evaluate(options.checkpoint, options.data, part)['predictions']]
    else:
        predictions = use.predict(options.checkpoint, options.inputs, options.online)
    report.print_predictions(predictions, _console())
    _write(options.json, {'checkpoint': options.checkpoint, 'predictions': predictions})


def _check_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('dataset', metavar='DATASET')
    it.add_argument('--data', type=Path, metavar='DIR', help='folder of the corpus')


def check(options: argparse.Namespace) -> int:
    from jmer.data import check

    report = check.check(options.dataset, options.data)
    check.show(report, _console())
    return 1 if report.problems else 0


def _publish_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('run_folder', metavar='RUN')
    it.add_argument('folder', type=Path, metavar='FOLDER')
    it.add_argument('--results', nargs='+', default=[], metavar='RUN',
                    type=Path,
                    help='runs of the same recipe (folds, seeds) whose test results go onto the card')
    it.add_argument('--store', choices=('float32', 'float16', 'bfloat16', 'none'), default='float32',
                    help="what the weights are stored as; 'none' writes the card alone (float32)")


def publish(options: argparse.Namespace) -> None:
    from jmer.results.publish import publish

    card = publish(options.run_folder, options.folder, options.results, options.store)
    print(f'{options.folder}: {card["model"]}, {card["parameters"]} parameters, '
          f'{card.get("params_sha256", "no weights")}')


def _import_author_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('model', metavar='MODEL')
    it.add_argument('file', type=Path, metavar='CHECKPOINT',
                    help='a .safetensors, .npz, .pt, .pth or .bin file; no code in it is run')
    it.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder for the weights')
    it.add_argument('--set', nargs='+', action='extend', default=[], metavar='FIELD=VALUE',
                    help="the model's fields, where the authors' differ from the defaults")
    it.add_argument('--key', default='', metavar='NAME',
                    help="mapping of tensors to take, such as 'model', where the file has several")


def import_author(options: argparse.Namespace) -> None:
    from jmer import importing

    card = importing.import_author(options.model, options.file, options.out, options.set, options.key)
    print(f'{options.out}: {card["model"]}, {card["parameters"]} parameters, {card["params_sha256"]}')


def _compare_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('runs', nargs=2, type=Path, metavar='RUN', help='a run, or a folder of folds and seeds')
    it.add_argument('--json', type=Path, metavar='FILE', help='all figures')


def compare(options: argparse.Namespace) -> None:
    from jmer.results import compare

    result = compare.compare(*options.runs)
    compare.show(result, _console())
    _write(options.json, result)


def _robustness_options(it: argparse.ArgumentParser) -> None:
    _measuring_options(it)
    it.add_argument('--noisy-audio', action='store_true', help='also add noise to the sound files themselves')


def robustness(options: argparse.Namespace) -> None:
    from jmer.results import robustness

    _measure(options, robustness, noisy_audio=options.noisy_audio)


def _measuring_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('checkpoint', metavar='CHECKPOINT|RUN',
                    help='the results go into the folder of a run, under the name of the command')
    it.add_argument('--data', type=Path, metavar='DIR', help='folder of the corpus')
    it.add_argument('--split', default='test', metavar='S', help='see --split of evaluate (test)')
    it.add_argument('--json', type=Path, metavar='FILE', help='all figures')


def contribution(options: argparse.Namespace) -> None:
    from jmer.results import contribution

    _measure(options, contribution)


def _measure(options: argparse.Namespace, what, **how: Any) -> None:
    """Measures weights, or every result of a run, which keeps what was found beside its card."""
    from jmer.results.collect import collect

    _prepare()
    run = Path(options.checkpoint)
    folders = [result.folder for result in collect(run)] if list(run.glob('**/weights/card.json')) else []
    found = {}
    for name in map(str, folders or [options.checkpoint]):
        found[name] = what.measure(name, options.data, options.split, **how)
        what.show(found[name], _console())
    for folder in folders:
        _write(folder / f'{options.command}.json', found[str(folder)])
    _write(options.json, found)


def _report_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('runs', nargs='+', type=Path, metavar='RUN')
    it.add_argument('--out', type=Path, default=Path('report.html'), metavar='FILE', help='(report.html)')
    it.add_argument('--plots', type=Path, metavar='DIR', help='also the pictures, as PNG files')


def report_(options: argparse.Namespace) -> None:
    from jmer.results import report

    report.write(options.runs, options.out, options.plots)
    print(options.out)


def _results_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('folder', nargs='?', type=Path, default=Path(),
                    help='that holds checkpoints/ and RESULTS.md (.)')
    it.add_argument('--check', action='store_true', help='only say whether it is in step with the cards')


def results(options: argparse.Namespace) -> None:
    from jmer.results import table

    folder, page = options.folder / 'checkpoints', options.folder / 'RESULTS.md'
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder}: no such folder; go to the top of a checkout')
    if options.check:
        table.check(folder, page)
    else:
        page.write_text(table.render(folder), 'utf-8')
    print(f'{page}: {"in step with" if options.check else "written from"} the cards')


def _bench_options(it: argparse.ArgumentParser) -> None:
    it.add_argument('names', nargs='*', metavar='BENCHMARK', help='all that can run here if none is named')
    it.add_argument('--data', type=Path, metavar='DIR', help='folder of RAVDESS, for input-wait')
    it.add_argument('--systems', nargs='*', metavar='NAME',
                    help="training steps at the authors' sizes beside their own code's, of all systems if none "
                         'is named')
    it.add_argument('--turns', nargs='*', metavar='NAME',
                    help='how training steps of conversation systems grow with the turns, likewise')
    it.add_argument('--json', type=Path, metavar='FILE', help='all figures of --systems or --turns')


def bench(options: argparse.Namespace) -> None:
    from jmer.bench import run, systems, turns

    if bool(options.names) + (options.systems is not None) + (options.turns is not None) > 1:
        raise ValueError('bench: expected one of benchmarks, --systems and --turns')
    if options.systems is not None:
        _write(options.json, systems.run(options.systems, _console()))
    elif options.turns is not None:
        _write(options.json, turns.run(options.turns, _console()))
    else:
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


def _prepare() -> None:
    """Keeps compiled programs for the next run, which then starts in a fraction of the time, and freed memory."""
    import jax

    from jmer import parallel
    from jmer.data.load import cache

    parallel.keep_freed_memory()
    jax.config.update('jax_compilation_cache_dir', str(cache() / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


if __name__ == '__main__':
    sys.exit(main())
