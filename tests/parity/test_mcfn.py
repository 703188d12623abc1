"""MCFN against the authors' numbers, reading the padding of text as theirs does."""

import jax.numpy as jnp
import numpy as np
import pytest

from jmer.models.utterance import mcfn
from jmer.types import Stream

from . import fusion, parity

BIASED = {'norm_wide': 'acoustic_cnn'} | {f'norm_deep_{k}': f'acoustic_cnn{k}' for k in (1, 2, 3)}


def adapt(fixture):
    h, state = fixture.hparams, fixture.section('param')
    return mcfn.Model(len(state['classifier.bias']), width=h['hidden'], heads=h['heads'], reads_padding=True,
                      narrow=tuple(len(state[f'acoustic_cnn{k}.bias']) for k in (1, 2)),
                      attention=len(state['pa.query_conv.bias']), hidden=len(state['mha.attention.W_q.weight']))


def to_batch(inputs):
    text = inputs['bert_features']
    mask = np.arange(text.shape[1])[None] < inputs['text_length'][:, None]
    return fusion.batch_of(text=Stream(text, jnp.asarray(mask)), audio=fusion.sequence(inputs['acoustic']))


@pytest.mark.parametrize('name', parity.names('mcfn'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)

    def forward(variables, inputs, train):
        out, changed = model.apply(variables, to_batch(inputs), train=train, mutable=['batch_stats'])
        # Ours has no bias in front of a batch normalisation; theirs is part of their running mean.
        seen = dict(changed['batch_stats'])
        for norm, convolution in BIASED.items():
            bias = fixture[f'param/{convolution}.bias']
            seen[norm] = seen[norm] | {'mean': seen[norm]['mean'] + bias}
        return out, {'batch_stats': seen}

    fusion.assert_equals(
        fixture,
        lambda state: mcfn.params_from_author(state, model),
        forward,
        lambda out: {'logits': out.logits, 'fuse_embed': out.aux['fused']},
        lambda out, inputs: {'total': fusion.cross_entropy(out.logits, inputs['labels'])},
        {'norm_wide': 'bn', 'norm_deep_1': 'bn1', 'norm_deep_2': 'bn2', 'norm_deep_3': 'bn3',
         'after_norm_text': 'conv_postatt.1', 'after_norm_audio': 'conv_postatt_a.1'},
    )
