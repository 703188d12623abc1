"""MMGCN against the authors' code, every dialogue alone."""

import jax
import numpy as np
import pytest

from jmer.losses import log_focal
from jmer.models.dialogue import mmgcn

from . import dialogues, graphs, parity

LETTERS = {'a': 'audio', 'v': 'vision', 'l': 'text'}


def model_of(fixture):
    h = fixture.hparams
    streams = tuple(LETTERS[letter] for letter in LETTERS if letter in h.get('modals', 'avl'))
    recurrent = tuple(LETTERS[k] for k in LETTERS
                      if f'solo_grad/lstm_{k}.weight_ih_l0' in fixture)      # stored even where not used
    return mmgcn.Model(
        h['n_classes'], streams=streams, recurrent=recurrent, width=h['D_e'], hidden=h['graph_hidden_size'],
        speaker_streams=('text',) if h['use_speaker'] and 'text' in streams else (),
        modal_vectors=h.get('use_modal', False), layers=h['nlayers'], alpha=h['alpha'], strength=h['lamda'],
        speakers=h['n_speakers'])


def adjacency(weights, row, turns):
    """[m u, m u] as the authors keep it, one modality behind the other."""
    within = np.asarray(weights.within)[row, :, :turns, :turns]
    across = np.asarray(weights.across)[row, :, :, :turns]
    return np.block([[within[m] if m == n else np.diag(across[m, n]) for n in range(len(within))]
                     for m in range(len(within))])


@pytest.mark.parametrize('name', parity.names('mmgcn'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    labels = dialogues.batch_of(fixture).labels['emotion']

    def named(out, row, turns):
        logits, alone = out.logits[row, :turns], type(labels)(*(x[row, :turns] for x in labels))
        return {
            'log_prob': jax.nn.log_softmax(logits),
            'graph_features': out.aux['graph'][row, :turns],
            'adjacency_normalised': adjacency(out.aux['weights'], row, turns),
            'text_lstm': out.aux['context'].get('text', np.zeros((1, turns, 1)))[row, :turns],
        } | ({'focal_loss_author': log_focal(logits, alone).value.mean()[None]} if len(out.logits) > 1 else {})

    # arccos is steep where the angle is zero, on the diagonal of the adjacency.
    graphs.compare(fixture, mmgcn, model_of(fixture), named, tolerances={'adjacency_normalised': 5e-5})
    fixture.assert_all_compared()
