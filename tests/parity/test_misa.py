"""MISA against the authors' numbers, its variants by the fixture's hyper-parameters."""

import jax.numpy as jnp
import numpy as np
import pytest

from jmer.models.utterance import misa
from jmer.types import Stream

from . import fusion, parity

LETTERS = {'text': 't', 'vision': 'v', 'audio': 'a'}


def adapt(fixture):
    h = fixture.hparams
    recurrent = ('vision', 'audio') if h['use_bert'] else ('text', 'vision', 'audio')
    return misa.Model(h['num_classes'], recurrent=recurrent, width=h['hidden_size'],
                      cell='lstm' if h['rnncell'] == 'lstm' else 'gru', adversarial=not h['use_cmd_sim'],
                      hidden=len(fixture['param/transformer_encoder.layers.0.linear1.bias']),
                      difference_weight=h['diff_weight'], similarity_weight=h['sim_weight'],
                      reconstruction_weight=h['recon_weight'], reverse_weight=h['reverse_grad_weight'],
                      dropout=0.0, transformer_dropout=0.0)


def to_batch(inputs, table):
    """Vision and audio are time-major; text is word numbers, or features of BERT."""
    steps = jnp.arange(len(inputs['visual']))[None]
    mask = steps < inputs['lengths'][:, None]
    text = (Stream(inputs['bert_features'], inputs['bert_mask'] > 0) if table is None
            else Stream(table[inputs['sentences']].swapaxes(0, 1), mask))
    return fusion.batch_of(inputs['labels'], text=text, vision=Stream(inputs['visual'].swapaxes(0, 1), mask),
                           audio=Stream(inputs['acoustic'].swapaxes(0, 1), mask))


def named_outputs(fixture, out):
    parts = {'utt_private_{}': 'private', 'utt_shared_{}': 'shared', 'utt_{}_orig': 'projected',
             'utt_{}_recon': 'rebuilt'}
    named = {name.format(letter): vector for name, ours in parts.items()
             for letter, vector in zip(LETTERS.values(), out.aux[ours], strict=True)}
    if 'streams' in out.aux:
        named |= {f'domain_label_{letter}': out.aux['streams'][:, m] for m, letter in enumerate(LETTERS.values())}
    # The layer that the authors compute and never use.
    weight, bias = (fixture[f'param/sp_discriminator.sp_discriminator_layer_1.{k}'] for k in ('weight', 'bias'))
    vectors = dict(zip('tva', out.aux['private'], strict=True))
    named |= {f'shared_or_private_p_{k}': x @ weight.T + bias[None] for k, x in vectors.items()}
    return named | {'shared_or_private_s': sum(out.aux['shared']) / 3 @ weight.T + bias[None], 'preds': out.logits}


@pytest.mark.parametrize('name', parity.names('misa'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)
    unweighted = model.clone(difference_weight=1.0, similarity_weight=1.0, reconstruction_weight=1.0)

    def forward(variables, inputs, train):
        variables, table = variables
        return model.apply(variables, to_batch(inputs, table), train=train, mutable=['batch_stats'])

    def all_losses(out, inputs):
        batch = to_batch(inputs, fixture.section('param').get('embed.weight'))
        raw = {k: fusion.total(term) for k, term in misa.loss(unweighted, out, batch).items()}
        total = sum(fusion.total(term) for term in misa.loss(model, out, batch).values())
        return {'cls': raw['label'], 'diff': raw['difference'], 'sim': raw['similarity'],
                'recon': raw['reconstruction'], 'total': total}

    fusion.assert_equals(
        fixture,
        lambda state: (misa.params_from_author(state, model), state.get('embed.weight')),
        forward,
        lambda out: named_outputs(fixture, out),
        all_losses,
    )


def test_the_losses_know_only_who_is_there():
    """An utterance whose stream is gone adds to no loss what it does not have."""
    fixture = parity.load('misa')
    model = adapt(fixture)
    variables = misa.params_from_author(fixture.section('param'), model)
    batch = to_batch(fixture.section('input'), fixture['param/embed.weight'])
    gone = np.array([True] * 4 + [False])[:, None]
    streams = batch.streams | {'audio': batch.streams['audio']._replace(mask=batch.streams['audio'].mask & gone)}
    without = batch._replace(streams=streams)
    loud = without._replace(streams=streams | {'audio': Stream(
        jnp.where(gone[..., None], streams['audio'].x, 1e3), streams['audio'].mask)})
    terms = [misa.loss(model, model.apply(variables, b, train=True), b) for b in (batch, without, loud)]
    for name in ('difference', 'similarity', 'reconstruction'):
        complete, absent, garbage = (float(fusion.total(t[name])) for t in terms)
        assert complete != absent
        assert absent == garbage
