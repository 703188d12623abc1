"""DWFormer against the authors' code, padding included."""

import pytest

from jmer.models.speech import dwformer

from . import parity
from .speech import clips, differentiate, floats, forward


def adapt(fixture):
    meta = fixture.meta
    blocks = sum(key.endswith('_threshold') for key in fixture.section('output'))
    return dwformer.Model(meta['classnum'], heads=meta['n_head'], hidden=meta['FFNdim'], blocks=blocks,
                          dropout=0.0, head_dropout=0.0, attend_padding=True)


@pytest.mark.parametrize('name', parity.names('dwformer'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model, state = adapt(fixture), fixture.section('param')
    batch = clips(fixture['input/x'], fixture['input/label'], fixture['input/mask'] == 0)
    out, total, grads = differentiate(dwformer.params_from_author, model, state, batch)

    for k, step in enumerate(out.aux['blocks']):
        for key, found in step.items():
            parity.assert_close_output(fixture, f'output/{f"block{k}" if k else "vanilla"}_{key}', found)
    parity.assert_close_output(fixture, 'output/logits', out.logits)
    parity.assert_close_loss(fixture, 'loss/ce', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()


def test_padding_matters_to_the_authors_only():
    fixture = parity.load('dwformer')
    x, mask = fixture['input/x'], fixture['input/mask'] == 0
    index = int(mask.sum(-1).argmin())
    one, count = slice(index, index + 1), int(mask[index].sum())
    padded = clips(x[one], fixture['input/label'][one], mask[one])
    alone = clips(x[one, :count], fixture['input/label'][one])
    theirs = adapt(fixture)
    variables = dwformer.params_from_author(floats(fixture.section('param')), theirs)

    def gap(model):
        a, b = (forward(variables, model, batch)[0].logits for batch in (padded, alone))
        return float(abs(a - b).max())

    assert gap(theirs.clone(attend_padding=False)) < 1e-5 < 1e-2 < gap(theirs)
