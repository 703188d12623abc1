"""CFN-SR against the authors' numbers, with the attention of the whole batch that theirs has."""

import numpy as np
import pytest

from jmer.models.utterance import cfn_sr

from . import fusion, parity


def adapt(fixture):
    h, state = fixture.hparams, fixture.section('param')
    rates = dict.fromkeys(('dropout', 'audio_dropout', 'attention_dropout', 'relu_dropout', 'residual_dropout',
                           'embed_dropout'), 0.0)
    widths = tuple(len(state[f'audio.conv{k}.bias']) for k in (1, 2, 3))
    return cfn_sr.Model(len(state['fc.bias']), steps=h['mfcc_len'], regions=h['H'] * h['W'], widths=widths,
                        attention=h['k'], heads=h['heads'], layers=h['layers'], batch_attention=True, **rates)


def to_batch(inputs):
    """Theirs has channels first: [b c slices height width], and MFCCs [b d t]."""
    video = inputs['video']
    slices = video.transpose(0, 2, 3, 4, 1).reshape(video.shape[0], video.shape[2], -1)
    return fusion.batch_of(audio=fusion.sequence(inputs['mfcc'].swapaxes(1, 2)), vision=fusion.sequence(slices))


def named_outputs(fixture, out):
    b, c, *places = fixture['input/video'].shape
    return {'logits': out.logits, 'video_pooled': out.aux['pooled'], 'audio_map': out.aux['audio'].swapaxes(1, 2),
            'video_reinforced': out.aux['reinforced'].reshape(b, *places, c).transpose(0, 4, 1, 2, 3)}


@pytest.mark.parametrize('name', parity.names('cfn_sr'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)
    fusion.assert_equals(
        fixture,
        lambda state: cfn_sr.params_from_author(state, model),
        lambda variables, inputs, train: model.apply(variables, to_batch(inputs), train=train,
                                                     mutable=['batch_stats']),
        lambda out: named_outputs(fixture, out),
        lambda out, inputs: {'total': fusion.cross_entropy(out.logits, inputs['labels'])},
        {f'norm_{k}': f'audio.bn{k}' for k in (1, 2, 3)},
    )


def test_by_default_an_item_is_reinforced_by_its_own_map():
    fixture = parity.load('cfn_sr')
    model = adapt(fixture).clone(batch_attention=False)
    variables = cfn_sr.params_from_author(fixture.section('param'), model)
    inputs = fixture.section('input')
    both = model.apply(variables, to_batch(inputs), train=False)
    alone = model.apply(variables, to_batch({k: v[:1] for k, v in inputs.items()}), train=False)
    np.testing.assert_allclose(both.logits[:1], alone.logits, atol=1e-5)
    np.testing.assert_allclose(both.aux['attention'].sum(-1), 1, atol=1e-5)
