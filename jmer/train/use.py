"""Using weights: evaluating them on a corpus, predicting a user's clips."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jmer import checkpoint, metrics, parallel, pretrained, zoo
from jmer.data import features
from jmer.data.corpus import Corpus, Item, Spec
from jmer.data.pipeline import common_steps, make_batch, pipeline
from jmer.train import inputs
from jmer.train.evaluate import Prediction, is_labelled, make_predict, metric_of, no_nan, predictions_of, sweep
from jmer.train.experiment import data_from_json
from jmer.train.online import check_causal, stepwise

SIDES = ('train', 'validation', 'test')


def evaluate(name: str, data_dir: Path | None, part: str) -> dict[str, Any]:
    """Metrics, figures per class and predictions of weights on a part of a corpus, ready for JSON.

    part: 'train', 'validation' or 'test' as the weights' protocol has it; a part of the corpus, 'fold3';
    or 'all' that the folder holds. Raises ValueError for a part that is not there, or features of
    another version than the weights were trained on.
    """
    model, variables, card = pretrained.load_trained(name)
    spec, _ = inputs.spec_from_json(card)
    corpus = inputs.read(data_from_json(card['data']), data_dir)
    if corpus.spec.version != spec.version:
        raise ValueError(f'{spec.name}: these are features of version {corpus.spec.version}; the weights were '
                         f'trained on version {spec.version}')
    items = select(corpus, part, card)
    states, predictions = _run(model, variables, card, items, corpus.spec)
    target = spec.targets[0]
    known = set(card['groups']['train']) | set(card['groups']['validation'])
    result = {
        'checkpoint': name, 'model': card['model'], 'corpus': spec.name, 'split': part,
        'n': sum(p.truth is not None and is_labelled(p.truth) for p in predictions),
        'seen_in_training': sum(item.group in known for item in items),
        'items': len(items),
        'metrics': metric_of(target).compute(states),
    }
    if target.kind != 'distribution':
        result['per_class'] = {
            figure: dict(zip(target.names, values.tolist(), strict=True))
            for figure, values in metrics.per_class(states).items()}
    return checkpoint.plain(no_nan({**result, 'predictions': _as_json(predictions, card)}))


def predict(name: str, paths: Sequence[str], online: bool = False) -> list[dict[str, Any]]:
    """Predictions for a user's files; files of one folder and stem are the streams of one clip.

    online: say of every turn of a conversation what was known when it was said, see `train.online`. Errors as
    `data.features.clip`, and ValueError for a model that cannot do so.
    """
    model, variables, card = pretrained.load_trained(name)
    spec, _ = inputs.spec_from_json(card)
    if online:
        check_causal(model)
    clips: dict[Path, list[str]] = {}
    for path in paths:
        clips.setdefault(Path(path).with_suffix(''), []).append(path)
    items = [features.clip(spec, *files) for files in clips.values()]
    # Turns are then named after their clip; by number alone those of two clips would have one name.
    items = [item._replace(id='+'.join(files), turns=()) for item, files in zip(items, clips.values(), strict=True)]
    predictions = (_run_online(model, variables, card, items, spec) if online
                   else _run(model, variables, card, items, spec, labelled=False)[1])
    return checkpoint.plain(_as_json(predictions, card))


def select(corpus: Corpus, part: str, card: dict[str, Any]) -> tuple[Item, ...]:
    """The items that a user means by `part`."""
    if part == 'all':
        return corpus.items
    if part in SIDES:
        groups = set(card['groups'][part])
        chosen = tuple(item for item in corpus.items if item.group in groups)
    else:
        chosen = tuple(item for item in corpus.items if item.part == part)
    if not chosen:
        raise ValueError(f'{corpus.spec.name}: nothing here belongs to {part!r}; name a part that is here '
                         f'({", ".join(sorted({item.part for item in corpus.items}))}) or all')
    return chosen


def _run(model, variables, card, items: Sequence[Item], spec: Spec, labelled: bool = True):
    """Metric sums and predictions, on as many devices as there are."""
    zoo.check_speakers(model, inputs.most_speakers(items))
    data = data_from_json(card['data'])
    spec = dataclasses.replace(spec, targets=inputs.spec_from_json(card)[0].targets)
    ready = inputs.standardise(inputs.shape(items, data), inputs.spec_from_json(card)[1])
    mesh = parallel.mesh()
    size = -(-data.batch_size // mesh.size) * mesh.size
    batches = pipeline(ready, spec, data.streams, data.target if labelled else None, size, buckets=4)
    run = parallel.compile_predict(make_predict(model, spec.targets[0], data), mesh)
    states, scores = sweep(run, parallel.replicate(variables, mesh), batches, mesh)
    return states, predictions_of(ready, scores, batches.target)


def _run_online(model, variables, card, items: Sequence[Item], spec: Spec) -> list[Prediction]:
    """Predictions of conversations, each turn from those before it."""
    zoo.check_speakers(model, inputs.most_speakers(items))
    data = data_from_json(card['data'])
    ready = inputs.standardise(inputs.shape(items, data), inputs.spec_from_json(card)[1])
    steps = common_steps(ready, spec, data.streams)
    judge = make_predict(model, spec.targets[0], data)
    longest = next(iter(steps.values()))[0]
    step = stepwise(lambda variables, batch: judge(variables, batch)[0], model, variables, longest)
    scores = []
    for item in ready:
        history, found, batch = None, [], make_batch([item], spec, (), steps)
        for k in range(int(batch.present.sum())):
            history, of_turn = step(history, jax.tree.map(lambda x, k=k: x[:, k:k + 1], batch))
            found.append(np.asarray(of_turn[0]))
        scores.append(np.stack(found))
    return predictions_of(ready, scores, None)


def _as_json(predictions: Sequence[Prediction], card: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry an utterance or turn: what is predicted, how sure, and the truth where it is known."""
    target = card['target']
    lines = []
    for p in predictions:
        line: dict[str, Any] = {'id': p.id}
        scores = dict(zip(target['names'], np.asarray(p.scores, np.float64).tolist(), strict=True))
        if target['kind'] == 'class':
            line |= {'predicted': max(scores, key=scores.__getitem__)}
        line['values' if target['kind'] == 'regression' else 'probabilities'] = scores
        if p.truth is not None and is_labelled(p.truth):
            line['label'] = (target['names'][int(p.truth)] if target['kind'] == 'class'
                             else np.asarray(p.truth).tolist())
        lines.append(line)
    return lines
