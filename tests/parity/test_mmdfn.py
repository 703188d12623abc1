"""MM-DFN against the authors' code, every dialogue alone, and with every speaker's turns alone."""

import jax
import numpy as np
import pytest

from jmer.losses import Term, focal
from jmer.models.dialogue import mmdfn

from . import dialogues, graphs, parity

LETTERS = {'a': 'audio', 'v': 'vision', 'l': 'text'}


def model_of(fixture):
    h = fixture.hparams
    streams = tuple(LETTERS[letter] for letter in LETTERS if letter in h.get('modals', 'avl'))
    weights = dict(zip(LETTERS.values(), map(float, h['speaker_weights'].split('-')), strict=True))
    memory, d = h.get('reason_flag', True), 2 * h['D_e'] + h['graph_hidden_size']
    return mmdfn.Model(
        h['n_classes'], streams=streams, width=h['D_e'], hidden=h['graph_hidden_size'], layers=h['nlayers'],
        recurrent=() if h.get('base_model') == 'None' else ('text',),
        party_weights=tuple(weights[name] for name in streams) if h.get('use_crn_speaker', True) else (),
        speaker_streams=('text',) if h.get('use_speaker') and 'text' in streams else (),
        modal_vectors=h.get('use_modal', False), alpha=h['alpha'], strength=h['lamda'], memory=memory,
        across=h.get('modal_weight', 1.0), speakers=h['n_speakers'],
        keep_input=fixture['param/smax_fc.weight'].shape[1] == len(streams) * d)


def named(streams):
    def arrays(out, row, turns):
        found = {
            'log_prob': jax.nn.log_softmax(out.logits)[row, :turns],
            'graph_features': out.aux['graph'][row, :turns],
            'text_gru': out.aux['context'].get('text', np.zeros((1, turns, 1)))[row, :turns],
        }
        letters = {name: letter for letter, name in LETTERS.items()}
        return found | {f'graph_in_{letters[name]}': out.aux['graph_in'][row, i, :turns]
                        for i, name in enumerate(streams)}

    return arrays


@pytest.mark.parametrize('name', parity.names('mmdfn'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    weights, gamma = dialogues.class_weights(fixture), fixture.hparams['gamma']

    def loss(model, out, batch):
        """The authors divide by the number of turns, not by the sum of their class weights."""
        label = batch.labels['emotion']
        term = focal(out.logits, label, gamma=gamma, detach=True, class_weights=weights)
        return {'label': Term(term.value * term.weight, label.mask.astype(term.value.dtype))}

    model = model_of(fixture)
    graphs.compare(fixture, mmdfn, model.clone(padded_parties=True), named(model.streams), loss)
    graphs.compare(packed(fixture), mmdfn, model, named(model.streams), loss)
    fixture.assert_all_compared()


def packed(fixture):
    """The same fixture with the numbers recorded without padding behind the speakers' turns."""
    kept = {k: v for k, v in fixture._arrays.items() if not k.startswith('solo/')}
    kept |= {k.replace('solo_packed', 'solo'): v for k, v in kept.items() if k.startswith('solo_packed')}
    return parity.Fixture(fixture.name, kept)
