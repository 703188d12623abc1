"""DST against the authors' code, its random position table included."""

import pytest

from jmer.models.speech import dst

from . import parity
from .speech import clips, differentiate


def adapt(fixture):
    meta = fixture.meta
    return dst.Model(meta['classes'], layers=meta['layers'], heads=meta['heads'], hidden=meta['ffn'],
                     length=meta['length'], activation=meta['activation'],
                     random_positions=len(fixture['param/position']), dropout=0.0)


@pytest.mark.parametrize('name', parity.names('dst'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    batch = clips(fixture['input/x'], fixture['input/label'])
    out, total, grads = differentiate(dst.params_from_author, adapt(fixture), fixture.section('param'), batch)

    found = {'logits': out.logits}
    found |= {f'layer{i}_attention_out': x for i, x in enumerate(out.aux['attended'])}
    found |= {f'layer{i}_out': x for i, x in enumerate(out.aux['layers'])}
    for key in fixture.section('output'):
        parity.assert_close_output(fixture, f'output/{key}', found[key])
    parity.assert_close_loss(fixture, 'loss/ce', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()


def test_a_clip_longer_than_the_position_table_is_refused():
    fixture = parity.load('dst')
    model = adapt(fixture).clone(random_positions=7)
    batch = clips(fixture['input/x'], fixture['input/label'])
    with pytest.raises(ValueError, match=r'dst: audio: found \d+ steps, expected at most random_positions=7'):
        model.apply({'params': {}}, batch, train=False)
