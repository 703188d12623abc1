"""MulT against the authors' numbers (theirs and MMSA's), through their own tensors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jmer.models.utterance import mult
from jmer.types import Batch, Stream

from . import parity

STREAMS = {'l': 'text', 'a': 'audio', 'v': 'vision'}
QUICK = {'xla_backend_optimization_level': 0}       # compiled to run once


def adapt(fixture):
    """The model that a fixture's hyper-parameters describe; dropout is off in all of them."""
    h = fixture.hparams
    rates = dict.fromkeys(('text_dropout', 'embed_dropout', 'attention_dropout', 'relu_dropout',
                           'residual_dropout', 'out_dropout'), 0.0)
    classes = fixture['param/out_layer.weight'].shape[0]
    if 'dst_feature_dim_nheads' in h:
        width, heads = h['dst_feature_dim_nheads']
        return mult.Model(classes, width=width, heads=heads, layers=h['nlevels'], positions=False,
                          kernels=(h['kl'], h['ka'], h['kv']), causal=h['attn_mask'], **rates)
    on = tuple(name for letter, name in STREAMS.items() if h[f'{letter}only'])
    return mult.Model(classes, width=h['d_l'], heads=h['num_heads'], layers=h['layers'],
                      branches=on if len(on) == 1 else (), causal=h['attn_mask'], **rates)


def to_batch(inputs):
    streams = {name: Stream(x, jnp.ones(x.shape[:2], bool)) for name, x in inputs.items()}
    return Batch(streams, jnp.ones(len(inputs['text']), bool), {})


def total_loss(fixture, logits):
    """Integer labels are classes; IEMOCAP's eight outputs are four of two, one emotion each."""
    labels = fixture['input/labels']
    if labels.dtype.kind == 'f':
        return jnp.abs(logits - labels.reshape(logits.shape)).mean()
    logits = logits.reshape(labels.size, -1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels.ravel()).mean()


@pytest.mark.parametrize('name', [*parity.names('mult'), *parity.names('mmsa_mult')])
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model, state = adapt(fixture), fixture.section('param')
    inputs = {k: v for k, v in fixture.section('input').items() if k in STREAMS.values()}

    # The conversion stays outside of jit: its hundreds of transpositions would only be compiled.
    variables, to_author = jax.vjp(lambda state: mult.params_from_author(state, model), state)

    def forward(variables, inputs, *, model=model, train=False):
        return model.apply(variables, to_batch(inputs), train=train)

    def loss(variables, inputs):
        out = forward(variables, inputs, train=True)
        return total_loss(fixture, out.logits), out

    with jax.default_matmul_precision('highest'):
        out = jax.jit(forward, compiler_options=QUICK)(variables, inputs)
        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (total, trained), (grads, input_grads) = jax.jit(gradient, compiler_options=QUICK)(variables, inputs)
        grads, = to_author(grads)
        if 'output/preds_nomask' in fixture:
            seeing = functools.partial(forward, model=model.clone(causal=False))
            unmasked = jax.jit(seeing, compiler_options=QUICK)(variables, inputs)
            parity.assert_close_output(fixture, 'output/preds_nomask', unmasked.logits)

    for section, o in (('output', out), ('output_train', trained)):
        for key, found in named_outputs(o).items():
            if f'{section}/{key}' in fixture:
                parity.assert_close_output(fixture, f'{section}/{key}', found)
    parity.assert_close_loss(fixture, 'loss/total', total)
    parity.assert_close_gradients(fixture, grads)
    for key, found in input_grads.items():
        parity.assert_close_gradient(fixture, f'grad_input/{key}', found)
    fixture.compared('grad_input/labels')       # no gradient that a model has
    fixture.assert_all_compared()


def named_outputs(out):
    """Ours by the fixtures' names; theirs are time-major inside encoders."""
    aux = out.aux
    named = {'preds': out.logits, 'M': out.logits, 'last_hs': aux['joined'], 'Feature_f': aux['joined']}
    named |= {f'Feature_{name[0]}': h for name, h in aux['last'].items()}
    named |= {'Feature_t': named['Feature_t']} if 'Feature_t' in named else {}
    for pair, h in aux['crossed'].items():
        target, source = (next(k for k, v in STREAMS.items() if v == n) for n in pair.split('_from_'))
        named[f'{target}_with_{source}'] = np.swapaxes(h, 0, 1)
    return named | {f'pos_{k}': aux['positions'][v] for k, v in STREAMS.items() if aux['positions']}


def test_a_surplus_tensor_is_named():
    fixture = parity.load('mult')
    state = fixture.section('param') | {'trans_x.weight': np.zeros(3)}
    with pytest.raises(ValueError, match=r'surplus +trans_x\.weight'):
        mult.params_from_author(state, adapt(fixture))
