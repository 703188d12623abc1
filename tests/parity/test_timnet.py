"""TIM-Net against the authors' Keras code."""

import jax
import pytest

from jmer.models.speech import timnet

from . import parity
from .speech import clips, differentiate, forward


def adapt(fixture):
    meta = fixture.meta
    return timnet.Model(meta['classes'], width=meta['filter_size'], blocks=meta['dilation_size'],
                        kernel=meta['kernel_size'], dropout=0.0)


def smoothed_cross_entropy(fixture):
    """The authors smooth the labels beforehand."""
    target = fixture['input/y_smoothed']
    return lambda out, batch: -(target * jax.nn.log_softmax(out.logits)).sum(-1).mean()


@pytest.mark.parametrize('name', parity.names('timnet'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model, state = adapt(fixture), fixture.section('param')
    batch = clips(fixture['input/x'], fixture['input/y_onehot'].argmax(-1))
    loss = smoothed_cross_entropy(fixture)
    out, total, grads = differentiate(timnet.params_from_author, model, state, batch, loss)
    trained, statistics = forward(timnet.params_from_author(state, model), model, batch, train=True)

    parity.assert_close_output(fixture, 'output/multi_scale', out.aux['multi_scale'])
    parity.assert_close_output(fixture, 'output/decision', out.aux['decision'])
    parity.assert_close_output(fixture, 'output/probs', jax.nn.softmax(out.logits))
    parity.assert_close_output(fixture, 'output/train_probs_dropout0', jax.nn.softmax(trained.logits))
    for key in fixture.section('output'):
        if key.startswith('train_moving'):
            kind, layer = key.split('/')
            parity.assert_close_output(fixture, f'output/{key}', remembered(kind, layer, statistics, state))
    parity.assert_close_loss(fixture, 'loss/ce', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()


def remembered(kind, layer, statistics, state):
    """Our running statistic for 'batch_normalization_3': Keras counts four a block, two of each direction.

    We have no bias in front of it; theirs is part of the mean.
    """
    n = int(layer.rpartition('_')[2]) if layer[-1].isdigit() else 0
    ours = statistics[f'{("forward", "backward")[n % 4 // 2]}_{n // 4}_{n % 2 + 1}_norm']
    mean = ours['mean'] + state[f'conv1d_{n + 2}/bias']
    return mean if kind == 'train_moving_mean' else ours['var']
