"""GraphCFC against the authors' code, every dialogue alone and in its batch."""

import math

import pytest

from jmer.losses import cross_entropy
from jmer.models.dialogue import graphcfc

from . import dialogues, graphs, parity
from .test_graphmft import kinds


def model_of(fixture):
    h = fixture.hparams
    return graphcfc.Model(
        h['n_classes'], recurrent=kinds(fixture), width=h['hidesize'], base_width=h['base_size'],
        base_layers=h.get('base_nlayers', 2), dense_layers=tuple(h.get('unimodal_nlayers', (1, 1, 1, 1))),
        layers=tuple(h['multimodal_nlayers']), heads=h['nheads'], speakers=h['n_speakers'],
        relations='param/gatmlp_av.layers.0.convs.lin_edge.weight' in fixture,
        norm_first=h.get('norm_first', False), residual=h.get('use_residual', True),
        past=h['windowf'], future=h['windowp'])      # theirs are windows of the sender


def named(out, row, turns):
    heads = {letter: out.aux['heads'][name] for letter, name in (
        ('a', 'audio'), ('v', 'vision'), ('l', 'text'), ('share', 'share'))}
    return {f'logits_{letter}': scores[row, :turns] for letter, scores in heads.items()} | {
        'logits': out.logits[row, :turns],
        'features_final': out.aux['fused'][row, :turns],
        'text_lstm': out.aux['context'][-1][row, :turns],
    }


@pytest.mark.parametrize('name', parity.names('graphcfc'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    weights, kind = dialogues.class_weights(fixture), fixture.hparams.get('loss_type', 'auto_multi_loss')
    scale, constant = (1.0, math.log(2)) if kind == 'auto_multi_loss' else (2.0, 0.0)

    def loss(model, out, batch):
        """With the constant that the authors add for every head, or without their factor of one half."""
        terms = graphcfc.head_terms(
            model, out, batch, lambda scores, label: cross_entropy(scores, label, class_weights=weights))
        if kind == 'single_loss':
            terms = {'label': terms['label']}
        return {name: t._replace(value=scale * t.value + constant) for name, t in terms.items()}

    graphs.compare(fixture, graphcfc, model_of(fixture), named, loss)
    fixture.compared('output/labels_flat')      # the labels as they were given
    fixture.assert_all_compared()
