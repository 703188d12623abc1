"""Draws docs/toy.png: the models' test accuracy on the toy corpus beside the Bayes ceiling.

    python docs/toy.py

Trains every recipe of experiments/toy that has no finished run in runs/toy (`jmer train toy/MODEL`), reads
the cards and draws. Needs the extra `plots`.
"""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from jmer import cli
from jmer.data import bayes, synthetic
from jmer.data.load import load

MODELS = {'early': 'none', 'late': 'none', 'gmu': 'none', 'mult': 'none', 'bclstm': 'offline'}
"""Each recipe, and the context that its model sees: the turn alone, or the whole conversation."""


def accuracy(model: str) -> float:
    """Test accuracy of a recipe, trained if need be."""
    card = Path('runs', 'toy', model, 'weights', 'card.json')
    if not card.exists() and cli.main(['train', f'toy/{model}']):
        raise SystemExit(f'toy/{model} did not train')
    return json.loads(card.read_text())['metrics']['test']['accuracy']


def ceiling(context: str) -> float:
    """Accuracy of the Bayes classifier on the same test turns, without knowing who speaks."""
    corpus = load('toy' if context == 'none' else 'toy-dialogue')
    items = [item for item in corpus.items if item.part == 'test']
    return bayes.ceiling(synthetic.Law(), items, context=context, speakers=False)['accuracy']


def main() -> None:
    matplotlib.use('Agg')
    found = {model: accuracy(model) for model in MODELS}
    best = {context: ceiling(context) for context in set(MODELS.values())}
    figure, axes = plt.subplots(figsize=(8, 2.8), layout='constrained')
    for row, (model, context) in enumerate(MODELS.items()):
        axes.barh(row, 100 * best[context], color='#e3e6ea', height=0.72)
        axes.barh(row, 100 * found[model], color='#3566a8' if context == 'none' else '#b0562f', height=0.72)
        axes.text(100 * found[model] - 1, row, f'{100 * found[model]:.1f}', ha='right', va='center', color='white')
        axes.text(100 * best[context] + 1, row, f'Bayes {100 * best[context]:.1f}', va='center', color='#555555')
    axes.set_yticks(range(len(MODELS)), [
        f'{model}  ({"one turn" if context == "none" else "whole dialogue"})' for model, context in MODELS.items()])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel('test accuracy, %  (majority class 26)')
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(Path(__file__).with_suffix('.png'), dpi=150)
    for model, context in MODELS.items():
        print(f'{model:8s} {100 * found[model]:.1f}  of {100 * best[context]:.1f}')


if __name__ == '__main__':
    main()
