"""Robustness: one protocol for every model, whatever it was trained on.

    result = robustness.measure('bclstm/mosi', data_dir)
    robustness.show(result, console)

Every perturbation is a transform of batches at several levels (`PROTOCOL`); a curve is what the metrics
become over the levels. Streams go missing in every pattern of presence. And since all of it rests on masks,
the protocol first makes sure that what is missing leaves no trace in the outputs (`trace_check`).

One program is compiled for each perturbation: levels, streams and random draws are its arguments.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from rich.console import Console
from rich.table import Table

from jmer import metrics, parallel, pretrained, zoo
from jmer.data import audio, folder, transforms
from jmer.data.corpus import Item, Spec, Target
from jmer.data.pipeline import Pipeline, pipeline
from jmer.train import inputs
from jmer.train.evaluate import LOWER, make_predict, metric_of, predict
from jmer.train.experiment import Data, data_from_json
from jmer.train.use import select
from jmer.types import Array, Batch, Variables

Figures = dict[str, float]
Change = Callable[..., Batch]


class Perturbation(NamedTuple):
    """What is done to the inputs, and how strongly.

    name, unit: of the perturbation and of its levels.
    change: (batch, key, level) -> batch, on all streams.
    levels: from weak to strong; a step is one that the model reads, be it a frame, a mean of frames, or a turn.
    scope: 'all' streams at once, 'each' by itself, or the one called 'text', if there is one.
    random: whether draws differ; else one is enough.
    """

    name: str
    unit: str
    change: Callable[[Batch, jax.Array, jax.Array], Batch]
    levels: tuple[float, ...]
    scope: Literal['all', 'each', 'text']
    random: bool = True


PROTOCOL = (
    Perturbation('missing streams', 'rate', transforms.lose_modalities,
                 (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 'all'),
    Perturbation('missing frames', 'rate', transforms.drop_frames, (0.0, 0.1, 0.3, 0.5, 0.7), 'all'),
    Perturbation('noise on features', 'dB', transforms.add_noise_at_snr, (20.0, 10.0, 5.0, 0.0), 'each'),
    Perturbation('delay', 'steps', lambda batch, key, level: transforms.desynchronise(batch, level.astype(int)),
                 (0.0, 1.0, 2.0, 4.0, 8.0), 'each', random=False),
    Perturbation('misheard words', 'rate', transforms.corrupt_words, (0.0, 0.1, 0.2, 0.4), 'text'),
)
"""What every model goes through. Figures of two models compare where this is the same."""

SOUND_LEVELS = (20.0, 10.0, 5.0, 0.0)
"""Signal-to-noise ratios of noisy sound files, in dB."""


class Subject(NamedTuple):
    """A model and the items it is judged on, ready to be batched.

    name: of the weights or the run. items: as the corpus has them. moments: of the standardisation.
    """

    name: str
    model: nn.Module
    variables: Variables
    card: dict[str, Any]
    data: Data
    spec: Spec
    moments: dict[str, transforms.Moments]
    items: tuple[Item, ...]

    @property
    def target(self) -> Target:
        return self.spec.targets[0]

    @property
    def streams(self) -> tuple[str, ...]:
        """Sorted, the order in which transforms count them."""
        return tuple(sorted(self.data.streams))


def subject(name: str, data_dir: Path | None, part: str) -> Subject:
    """Weights by name and the items of a part of their corpus; arguments and errors as `train.use.evaluate`."""
    model, variables, card = pretrained.load_trained(name)
    spec, moments = inputs.spec_from_json(card)
    data = data_from_json(card['data'])
    corpus = inputs.read(data, data_dir)
    if corpus.spec.version != spec.version:
        raise ValueError(f'{spec.name}: found features of version {corpus.spec.version}, expected version '
                         f'{spec.version}, which the weights were trained on')
    items = select(corpus, part, card)
    zoo.check_speakers(model, inputs.most_speakers(items))
    return Subject(name, model, variables, card, data, spec, moments, items)


def about(subject: Subject, part: str) -> dict[str, Any]:
    """Who was judged on what; and on how much that the weights have seen before."""
    known = {*subject.card['groups']['train'], *subject.card['groups']['validation']}
    return {'checkpoint': subject.name, 'model': subject.card['model'], 'corpus': subject.spec.name, 'split': part,
            'target': subject.target.name, 'items': len(subject.items),
            'seen_in_training': sum(item.group in known for item in subject.items)}


def batches(subject: Subject) -> Pipeline:
    """The subject's items on as many devices as there are, in one bucket: compiling outweighs padding here.

    What is drawn at random for an item hangs on its batch, whose size is a multiple of the number of devices.
    """
    ready = inputs.standardise(inputs.shape(subject.items, subject.data), subject.moments)
    count = len(jax.devices())
    size = -(-subject.data.batch_size // count) * count
    return pipeline(ready, subject.spec, subject.data.streams, subject.target.name, size)


def labelled(made: Iterable[Batch], target: Target) -> int:
    """How many utterances or turns of these batches have the label."""
    return sum(int(np.sum(batch.labels[target.name].mask)) for batch in made)


def compile_sums(subject: Subject, change: Change) -> Callable[..., Any]:
    """(variables, settings), batch -> metric sums of the changed batch, one program for n settings.

    change: (batch, *setting) -> batch. settings: a tuple of arrays [n ...]; so are the sums.
    """
    judge = make_predict(subject.model, subject.target, subject.data)

    def run(arguments, batch):
        variables, settings = arguments
        return jax.lax.map(lambda setting: judge(variables, change(batch, *setting))[1], settings)

    return parallel.compile_predict(run, parallel.mesh())


def sums_of(run: Callable[..., Any], subject: Subject, settings: tuple[Array, ...],
            made: Iterable[Batch]) -> list[Any]:
    """Metric sums over all batches for each of n settings, from a compiled `run`.

    A setting that is a key becomes another one for every batch.
    """
    mesh = parallel.mesh()
    variables = parallel.replicate(subject.variables, mesh)
    total = metrics.total(parallel.fetch(run((variables, _by_batch(settings, k)), parallel.shard(batch, mesh)))
                          for k, batch in enumerate(made))
    return [jax.tree.map(lambda x, k=k: x[k], total) for k in range(len(settings[0]))]


def _by_batch(settings, position):
    fold = jax.vmap(jax.random.fold_in, (0, None))
    return tuple(fold(x, position) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in settings)


def figures_of(run: Callable[..., Any], subject: Subject, settings: tuple[Array, ...],
               made: Iterable[Batch]) -> list[Figures]:
    """All metrics of the target for each of n settings, see `sums_of`."""
    return [metric_of(subject.target).compute(state) for state in sums_of(run, subject, settings, made)]


def patterns(streams: int) -> Bool[np.ndarray, 'n m']:
    """All 2^m patterns of presence; pattern k has stream j where bit j of k is 1."""
    return (np.arange(2 ** streams)[:, None] >> np.arange(streams)) % 2 == 1


def measure(name: str, data_dir: Path | None, part: str = 'test', seeds: int = 3,
            noisy_audio: bool = False) -> dict[str, Any]:
    """The whole protocol for published weights or a run, ready for JSON.

    name, data_dir, part: as for `train.use.evaluate`, with its errors. seeds: draws that are averaged.
    noisy_audio: also add noise to the sound files themselves, where the model reads log-mel of them.

    The result: 'clean' metrics; 'trace', see `trace_check`; 'patterns', the metrics for every set of
    streams but the empty one; 'curves', see `curve`; and 'left_out', what could not be done and why.
    """
    judged = subject(name, data_dir, part)
    result = perturb(judged, seeds)
    if noisy_audio:
        try:
            result['curves'].append(noisy_sound(judged, data_dir))
        except LookupError as reason:
            result['left_out'].append(str(reason))
    return to_json({**about(judged, part), 'draws': seeds, **result})


def perturb(subject: Subject, seeds: int = 3) -> dict[str, Any]:
    """The protocol on a subject, but for sound files; see `measure`."""
    made = [batch for _, batch in batches(subject).sweep()]
    presence = patterns(len(subject.streams))[1:]
    by_pattern = figures_of(compile_sums(subject, transforms.keep_modalities), subject, (presence,), made)
    curves, left_out = [], []
    for perturbation in PROTOCOL:
        found = _curves(subject, perturbation, seeds, made)
        curves += found
        if not found:
            left_out.append(f'{perturbation.name}: no stream is called text')
    return {
        'n': labelled(made, subject.target),
        'clean': by_pattern[-1],
        'trace': _trace(subject, made),
        'patterns': [{'streams': _names(subject, row), 'metrics': figures}
                     for row, figures in zip(presence, by_pattern, strict=True)],
        'curves': curves,
        'left_out': left_out,
    }


def _names(subject: Subject, chosen) -> list[str]:
    return [name for name, there in zip(subject.streams, chosen, strict=True) if there]


def _curves(subject: Subject, perturbation: Perturbation, seeds: int, made: Sequence[Batch]) -> list[dict[str, Any]]:
    """The curve of a perturbation, or one for each stream that it is confined to."""
    def change(batch, key, level, chosen):
        return transforms.choose_streams(perturbation.change(batch, key, level), batch, chosen)

    scopes = _scopes(subject, perturbation.scope)
    draws = seeds if perturbation.random else 1
    shape = len(scopes), len(perturbation.levels), draws
    if not len(scopes):
        return []
    scope, level, draw = (index.ravel() for index in np.indices(shape))
    # Equal keys for all levels: what is noisy or missing at a level is so at the next.
    settings = (jax.vmap(jax.random.key)(draw), jnp.asarray(perturbation.levels)[level], scopes[scope])
    figures = figures_of(compile_sums(subject, change), subject, settings, made)
    rows = np.arange(math.prod(shape)).reshape(shape)
    return [curve(perturbation.name, perturbation.unit, _names(subject, chosen), perturbation.levels,
                  [[figures[k] for k in draws] for draws in row])
            for chosen, row in zip(scopes, rows, strict=True)]


def _scopes(subject: Subject, scope: str) -> Bool[np.ndarray, 'n m']:
    """The sets of streams that a perturbation is confined to, in turn."""
    each = np.eye(len(subject.streams), dtype=bool)
    if scope == 'all':
        return np.ones((1, len(each)), bool)
    return each if scope == 'each' else each[[name == 'text' for name in subject.streams]]


def curve(name: str, unit: str, streams: Sequence[str], levels: Sequence[float],
          figures: Sequence[Sequence[Figures]]) -> dict[str, Any]:
    """What metrics become over the levels; figures: [level][draw].

    'metrics': means over the draws, by level; 'area' under that, divided by the range of the levels, hence
    in the unit of the metric; 'worst' of all levels and draws.
    """
    names = list(figures[0][0])
    values = {n: np.array([[one[n] for one in draws] for draws in figures]) for n in names}
    means = {n: v.mean(1) for n, v in values.items()}
    extent = levels[-1] - levels[0]
    return {
        'name': name, 'unit': unit, 'streams': list(streams), 'levels': list(levels),
        'metrics': {n: v.tolist() for n, v in means.items()},
        'area': {n: float(np.trapezoid(v, levels) / extent) for n, v in means.items()},
        'worst': {n: float(v.max() if n in LOWER else v.min()) for n, v in values.items()},
    }


def trace_check(model: nn.Module, variables: Variables, batch: Batch) -> float:
    """Largest change of a present item's scores when all that is masked holds other (finite) garbage.

    0.0 is the only right answer: what is missing must not be seen. A score that is NaN counts as the largest
    change that a float can hold.
    """
    return float(jax.jit(lambda v, b: _change_by_garbage(model, v, b))(variables, batch))


def _change_by_garbage(model, variables, batch: Batch):
    # Mapped, so that one and the same program reads both: two might round differently.
    both = jax.tree.map(lambda *x: jnp.stack(x), batch, _with_garbage(batch))
    scores = jax.lax.map(lambda one: predict(model, variables, one).logits, both)
    # A maximum over devices may lose NaN.
    change = jnp.nan_to_num(jnp.abs(scores[1] - scores[0]), nan=jnp.finfo(scores.dtype).max)
    return jnp.max(jnp.where(jnp.asarray(batch.present)[..., None], change, 0.0))


def _with_garbage(batch: Batch) -> Batch:
    """Large random features wherever a mask is False, and another speaker where nobody speaks."""
    noise = transforms.add_noise(batch, jax.random.key(0), 1e3)
    streams = {name: stream._replace(x=jnp.where(stream.mask[..., None], stream.x, noise.streams[name].x))
               for name, stream in batch.streams.items()}
    speakers = None if batch.speakers is None else jnp.where(batch.present, batch.speakers, 1 - batch.speakers % 2)
    return batch._replace(streams=streams, speakers=speakers)


def _trace(subject: Subject, made: Sequence[Batch]) -> float:
    """`trace_check` over all batches, under every pattern of presence, with half of the steps missing too."""
    def largest(arguments, batch):
        variables, presence = arguments

        def one(present):
            less = transforms.keep_modalities(transforms.drop_frames(batch, jax.random.key(0), 0.5), present)
            return _change_by_garbage(subject.model, variables, transforms.stand_in(less, subject.data.stand_ins))

        return jnp.max(jax.lax.map(one, presence))

    mesh = parallel.mesh()
    run, variables = parallel.compile_predict(largest, mesh), parallel.replicate(subject.variables, mesh)
    presence = patterns(len(subject.streams))
    return max(float(parallel.fetch(run((variables, presence), parallel.shard(batch, mesh)))) for batch in made)


def noisy_sound(subject: Subject, data_dir: Path | None) -> dict[str, Any]:
    """The curve over noise in the sound files, whose log-mel is computed anew.

    The files are read from the corpus' own folder: one called like each item. Where log-mel only stands in
    for another stream, that one is taken away ('without'), as in a clip of which there is only the sound.
    Raises LookupError where the model reads no log-mel of ours, or an item has no sound file.
    """
    name = 'noise in sound files'
    ours = [s for s in subject.spec.streams if (s.name, s.width, s.rate) == ('audio', audio.BANDS, audio.FRAME_RATE)]
    if not ours or subject.spec.layout == 'dialogue' or data_dir is None:
        raise LookupError(f'{name}: the model reads no log-mel of sound files')
    sounds = {id: audio.read(path) for id, path in sound_files(Path(data_dir), subject.items).items()}
    hidden = {original for substitute, original in subject.data.stand_ins if substitute == 'audio'}
    kept = np.array([[stream not in hidden for stream in subject.streams]])
    run = compile_sums(subject, transforms.keep_modalities)

    def judge(items):
        made = (batch for _, batch in batches(subject._replace(items=tuple(items))).sweep())
        return figures_of(run, subject, (kept,), made)

    figures = [judge(_at_snr(item, sounds[item.id], snr) for item in subject.items) for snr in SOUND_LEVELS]
    return curve(name, 'dB', ['audio'], SOUND_LEVELS, figures) | {
        'clean': judge(subject.items)[0], 'without': sorted(hidden)}


def _at_snr(item: Item, samples: np.ndarray, snr: float) -> Item:
    frames = audio.log_mel(audio.add_noise_at_snr(samples, snr, item.id))
    return item._replace(streams={**item.streams, 'audio': frames})


def sound_files(root: Path, items: Iterable[Item]) -> dict[str, Path]:
    """The sound file of each item: under `root`, called like the item. Raises LookupError where one has none."""
    ids = {item.id for item in items}
    found = {path.stem: path for path in folder.files(root)
             if path.stem in ids and path.suffix.lower() in ('.wav', '.flac')}
    if lacking := sorted(ids - set(found)):
        raise LookupError(f'{root}: no sound file for {len(lacking)} items, such as {lacking[0]}')
    return found


def to_json(value: Any) -> Any:
    """The value as JSON can keep it: NaN, a figure that rests on nothing, as None."""
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def show(result: Mapping[str, Any], console: Console, metric: str | None = None) -> None:
    """One metric of the result (the first, if None) by pattern of presence and by perturbation."""
    metric = metric or next(iter(result['clean']))
    console.print(heading(result), style='bold')
    table = Table('streams that are there')
    table.add_column(metric, justify='right')
    for row in result['patterns']:
        table.add_row(', '.join(row['streams']), number(row['metrics'][metric]))
    console.print(table)
    table = Table('perturbation', 'streams', f'level: {metric}')
    for column in ('area', 'worst'):
        table.add_column(column, justify='right')
    for curve in result['curves']:
        values = [f'{level:g}: {number(value, 3)}'
                  for level, value in zip(curve['levels'], curve['metrics'][metric], strict=True)]
        clean = [f'clean: {number(curve["clean"][metric], 3)}'] if 'clean' in curve else []
        table.add_row(f'{curve["name"]} ({curve["unit"]})', ', '.join(curve['streams']), '  '.join([*clean, *values]),
                      number(curve['area'][metric]), number(curve['worst'][metric]))
    console.print(table)
    console.print(f'trace of what is missing: {number(result["trace"])}', style=None if result['trace'] == 0 else 'red')
    for line in result['left_out']:
        console.print(f'left out: {line}', style='dim')
    warn_of_seen(result, console)


def heading(result: Mapping[str, Any]) -> str:
    """Who was judged on what."""
    return f'{result["checkpoint"]} on {result["corpus"]} ({result["split"]}), {result["target"]}, n = {result["n"]}'


def number(value: float | None, digits: int = 4) -> str:
    """A figure as tables show it."""
    return '-' if value is None else f'{round(value, digits) + 0.0:.{digits}f}'   # + 0.0: no -0.0000


def warn_of_seen(result: Mapping[str, Any], console: Console) -> None:
    """Says so where the weights have seen what they are judged on."""
    if result['seen_in_training']:
        console.print(f'Not an honest test: {result["seen_in_training"]} of {result["items"]} items are of groups '
                      'that the weights were trained or chosen on.', style='yellow')
