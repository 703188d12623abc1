"""Head Fusion's MACNN and its baseline ACNN against the authors' code."""

import pytest

from jmer.models.speech import headfusion

from . import parity
from .speech import clips, differentiate, floats, forward


def adapt(fixture, kind):
    meta = fixture.meta
    classes = len(fixture[f'param/{kind}/fc.bias'])
    return headfusion.Model(classes, kind=kind, heads=meta['attention_heads'], hidden=meta['attention_hidden'])


@pytest.mark.parametrize('name', parity.names('headfusion'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    batch = clips(fixture['input/x'][:, 0].swapaxes(1, 2), fixture['input/label'])
    gradients = {}
    for kind in headfusion.KINDS:
        model, state = adapt(fixture, kind), fixture.section(f'param/{kind}')
        out, total, grads = differentiate(headfusion.params_from_author, model, state, batch)
        parity.assert_close_output(fixture, f'output/{kind}/logits', out.logits)
        parity.assert_close_loss(fixture, f'loss/{kind}/ce', total)
        gradients |= {f'{kind}/{key}': value for key, value in grads.items()}

        trained = [key for key in fixture.section(f'output/{kind}') if key.startswith('train_')]
        if trained:
            variables = headfusion.params_from_author(floats(state), model)
            out, statistics = forward(variables, model, batch, train=True)
        for key in trained:
            found = out.logits if key == 'train_logits' else remembered(key, statistics, state)
            parity.assert_close_output(fixture, f'output/{kind}/{key}', found)
    parity.assert_close_gradients(fixture, gradients)
    fixture.assert_all_compared()


def remembered(key, statistics, state):
    """Our running statistic for 'train_running_mean_bn5'; we have no bias in front of it, it is in the mean."""
    kind, layer = key.removeprefix('train_running_').split('_bn')
    return statistics[f'norm_{layer}'][kind] + (state[f'conv{layer}.bias'] if kind == 'mean' else 0)
