"""The squeeze-and-excitation block in cross-modal attention, by hand."""

import jax
import numpy as np
import pytest

from jmer.models.utterance import se_attention
from tests import batches

MODEL = se_attention.Model(3, width=8, heads=2, reduction=4, hidden=4)


def init(model):
    return model.init(jax.random.key(0), batches.utterances(), train=False)


def test_what_is_found_is_gated_by_its_channels_and_added():
    variables = jax.jit(lambda: init(MODEL))()
    batch = batches.pad(batches.utterances())
    out = jax.jit(lambda batch: MODEL.apply(variables, batch, train=False))(batch)
    params, size, pooled = jax.tree.map(np.asarray, variables['params']), 3, []
    for name in ('audio', 'text'):
        def linear(x, layer):
            return x @ params[layer]['kernel'] + params[layer]['bias'].reshape((1,) * (x.ndim - 1) + (-1,))

        mask = np.asarray(batch.streams[name].mask)[0]
        found = np.asarray(out.aux['found'][name])[:size, mask]
        squeezed = np.maximum(linear(found.mean(1), f'squeeze_{name}'), 0)
        gate = 1 / (1 + np.exp(-linear(squeezed, f'excite_{name}')))
        np.testing.assert_allclose(out.aux['gates'][name][:size], gate, atol=1e-6)

        x = linear(np.asarray(batch.streams[name].x)[:size, mask], f'project_{name}') + gate[:, None] * found
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        pooled += [x.mean(1), x.std(1)]
    np.testing.assert_allclose(out.aux['fused'][:size], np.concatenate(pooled, -1), atol=1e-5)


@pytest.mark.parametrize(('change', 'message'), [
    ({'streams': ('audio',)}, r'streams: found .*, expected two'),
    ({'reduction': 9}, 'width: found 8, expected reduction=9 or more'),
])
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match='se_attention: ' + message):
        jax.eval_shape(lambda: init(MODEL.clone(**change)))
