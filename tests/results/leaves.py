"""What finished runs leave behind, made up: cards, predictions and logs without training anything."""

import json
import zlib

import numpy as np
from scipy.special import expit, softmax

from jmer.results.collect import Side


def leaf(folder, *, model='gmu', seed=0, fold='fold0', n=40, classes=3, skill=0.6, rng, kind='class'):
    """Writes a finished run with sides validation and test of n items each, and returns its folder.

    Ids, groups (five items each) and truth depend on fold and side alone, so that runs can be paired.
    skill: 0 knows nothing of the truth; about 0.6 is right more often than not. rng: of the scores.
    """
    sides = {name: side(f'{fold}-{name}', n, classes, skill, rng, kind) for name in ('validation', 'test')}
    figures = {name: {'n': n, 'accuracy': float((one.scores.argmax(-1) == one.truth).mean())} if kind == 'class'
               else {'n': n} for name, one in sides.items()}
    card = {
        'model': model, 'seed': seed, 'corpus': 'toy', 'parameters': 1000, 'command': f'jmer train toy/{model}',
        'data': {'name': 'toy', 'streams': ['text', 'audio'], 'protocol': {'test': [fold], 'validation': []}},
        'target': {'name': 'emotion', 'kind': kind, 'names': [f'class{k}' for k in range(classes)]},
        'metrics': figures, 'selected': {'step': 20, 'by': 'validation/uar'},
    }
    (folder / 'weights').mkdir(parents=True)
    (folder / 'weights' / 'card.json').write_text(json.dumps(card))
    lines = [{'step': 10 * epoch, 'epoch': epoch, 'train/loss': 1 / epoch, 'validation/nll': 1.2 / epoch,
              'validation/uar': skill * epoch / 3} for epoch in (1, 2, 3)]
    (folder / 'log.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    write(folder / 'predictions.npz', sides)
    return folder


def write(path, sides):
    """Predictions as a run leaves them: arrays called <side>/<field>."""
    np.savez(path, allow_pickle=False, **{
        f'{name}/{field}': values for name, side in sides.items() for field, values in side._asdict().items()})


def side(name, n, classes, skill, rng, kind='class'):
    """One side: truth from the name, scores from rng and truth."""
    fixed = np.random.default_rng(zlib.crc32(name.encode()))
    ids = np.array([f'{name}-{k:04d}' for k in range(n)])
    groups = np.array([f'{name}-{k // 5:03d}' for k in range(n)])
    noise = rng.normal(size=(n, classes))
    truth = {
        'class': fixed.integers(0, classes, n).astype(np.int32),
        'multilabel': (fixed.random((n, classes)) < 0.4).astype(np.float32),
        'regression': fixed.normal(size=(n, classes)).astype(np.float32),
        'distribution': fixed.dirichlet(np.ones(classes), n).astype(np.float32),
    }[kind]
    known = np.eye(classes)[truth] if kind == 'class' else truth
    logits = noise + 3 * skill * known
    scores = {'class': softmax, 'distribution': softmax, 'multilabel': lambda x, _: expit(x),
              'regression': lambda x, _: x}[kind](logits, -1)
    return Side(ids, groups, scores.astype(np.float32), truth)
