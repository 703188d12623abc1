"""GraphMFT against the authors' code, every dialogue alone and in its batch."""

import pytest

from jmer.models.dialogue import graphmft

from . import graphs, parity


def kinds(fixture):
    """What reads each stream, by the rows of its weights."""
    found = []
    for name in ('audio', 'visual', 'text'):
        kernel = fixture.section('param').get(f'rnn_{name}.weight_hh_l0')
        found.append('none' if kernel is None else {4: 'lstm', 3: 'gru'}[len(kernel) // kernel.shape[1]])
    return tuple(found)


def model_of(fixture):
    h = fixture.hparams
    return graphmft.Model(
        h['n_classes'], recurrent=kinds(fixture), width=h['hidesize'], base_width=h['base_size'],
        base_layers=h.get('base_nlayers', 2), layers=tuple(h['multimodal_nlayers']), heads=h['nheads'],
        speakers=h['n_speakers'], past=h['windowf'], future=h['windowp'])      # theirs are windows of the sender


def named(out, row, turns):
    return {
        'logits': out.logits[row, :turns],
        'features_final': out.aux['fused'][row, :turns],
        'text_lstm': out.aux['context'][-1][row, :turns],
    }


@pytest.mark.parametrize('name', parity.names('graphmft'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    graphs.compare(fixture, graphmft, model_of(fixture), named)
    fixture.compared('output/labels_flat')      # the labels as they were given
    fixture.assert_all_compared()
