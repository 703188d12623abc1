"""LMR-CBT against the authors' numbers, with an LSTM over the batch as theirs is."""

import jax.numpy as jnp
import pytest

from jmer.models.utterance import lmr_cbt

from . import fusion, parity


def adapt(fixture):
    h = fixture.hparams
    rates = dict.fromkeys(('text_dropout', 'lstm_dropout', 'attention_dropout', 'relu_dropout', 'residual_dropout',
                           'embed_dropout', 'out_dropout'), 0.0)
    return lmr_cbt.Model(h['output_dim'], width=h['d_l'], heads=h['num_heads'], layers=max(h['layers'], 1),
                         causal=h['attn_mask'], across_batch=True, **rates)


def to_batch(inputs):
    return fusion.batch_of(**{name: fusion.sequence(inputs[name]) for name in ('text', 'audio', 'vision')})


def named_outputs(out):
    """Two of them are taken out of the middle; the LSTM's has time first."""
    return {'preds': out.logits, 'last_hs': out.aux['joined'], 'lstm_TBC': out.aux['states'].swapaxes(0, 1),
            'cross_v_of_ones': out.aux['changed_by_ones']}


@pytest.mark.parametrize('name', parity.names('lmr_cbt'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)

    def forward(variables, inputs, train):
        out, changed = model.apply(variables, to_batch(inputs), train=train, mutable=['batch_stats'])
        change = {'params': variables['params']['change_vision']}
        ones = jnp.ones((len(out.logits), model.width))
        by_ones = lmr_cbt.FeatureAttention(model.width).apply(change, out.aux['normed'], ones)
        return out._replace(aux=out.aux | {'changed_by_ones': by_ones}), changed

    fusion.assert_equals(
        fixture,
        lambda state: lmr_cbt.params_from_author(state, model),
        forward,
        named_outputs,
        lambda out, inputs: {'total': fusion.task_loss(out.logits, inputs['labels'])},
        {'norm_audio': 'bn_a', 'norm_vision': 'bn_v'},
    )
