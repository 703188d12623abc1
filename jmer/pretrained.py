"""Published weights, and those of a user's own runs, ready to use."""

from pathlib import Path
from typing import Any

import flax.linen as nn

from jmer import checkpoint, shipped, zoo
from jmer.types import Variables

NEEDED = {'model', 'fields', 'corpus', 'features', 'layout', 'streams', 'target', 'standardisation',
          'licence', 'citation', 'source', 'data', 'groups'}
"""What a card has to say for its weights to be used."""

IMPORTED = {'model', 'fields', 'imported'}
"""What the card of an author's checkpoint has to say; nobody told jmer the rest."""


def load(name: str) -> tuple[nn.Module, Variables, dict[str, Any]]:
    """The model, its variables and its card.

        model, variables, card = jmer.load('gmu/ravdess')
        output = model.apply(variables, batch, train=False)

    name: '<model>/<dataset>' of the weights shipped with jmer, a folder of weights (also one that `jmer
    import-author` wrote, see `jmer.importing`), or a run's folder (its chosen weights). Variables are NumPy arrays
    under 'params' (and 'batch_stats' where the model has batch normalisation); they go onto any device. Raises
    FileNotFoundError or ValueError naming the file, where the folder is missing, torn, or holds something else.
    """
    folder = locate(name)
    card = checkpoint.read_json(folder / 'card.json') if (folder / 'card.json').exists() else {}
    if 'command' in card and 'params_sha256' not in card and not (folder / 'params').exists():
        raise FileNotFoundError(f'{folder}: a card of figures, without weights; they are made by: {card["command"]}')
    variables, card = checkpoint.load(folder)
    missing = (IMPORTED if 'imported' in card else NEEDED) - set(card)
    if missing:
        raise ValueError(f'{folder / "card.json"}: found no {", ".join(sorted(missing))}; '
                         'this is not the card of a model')
    return zoo.build({key: card[key] for key in ('model', 'fields')}), variables, card


def load_trained(name: str) -> tuple[nn.Module, Variables, dict[str, Any]]:
    """`load` for those who need to know the corpus: ValueError for imported weights, whose card cannot say it."""
    model, variables, card = load(name)
    if 'imported' in card:
        raise ValueError(f'{locate(name) / "card.json"}: these weights were imported; found no corpus, labels and '
                         'standardisation, expected those that they were trained with. jmer.load gives the model, '
                         'for batches of your own')
    return model, variables, card


def locate(name: str) -> Path:
    """The folder of weights that a user means: shipped, published, or chosen by a run of one fold and seed."""
    folder = shipped.find('checkpoints', name)
    if (folder / 'card.json').exists():
        return folder
    if (folder / 'weights' / 'card.json').exists():
        return folder / 'weights'
    results = sorted(str(card.parents[1]) for card in folder.glob('**/weights/card.json'))
    if results:
        raise ValueError(f'{folder}: this run has several folds or seeds; name one of them: {", ".join(results)}')
    if (folder / 'experiment.json').exists():
        raise FileNotFoundError(f'{folder}: this run has not finished; go on with it by the command that '
                                'started it, then its chosen weights are in its folder weights/')
    return folder
