"""Parts of IMDer against the authors' code: the encoder, the recovery network, and the fusion, which is MulT's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer.author import Reader
from jmer.layers import diffusion
from jmer.layers.attention import Encoder
from jmer.layers.rcan import ResidualGroup
from jmer.models.utterance import imder, mult
from jmer.types import Batch, Label, Stream

from . import parity
from .speech import QUICK, differentiate, floats
from .test_mult import named_outputs


def steps(x):
    """Batch first, and nothing absent."""
    x = np.swapaxes(x, 0, 1)
    return x, np.ones(x.shape[:2], bool)


@pytest.mark.parametrize('name', parity.names('imder_transformer'))
def test_the_encoder_equals_the_authors(name):
    fixture = parity.load(name)
    meta, state = fixture.meta, fixture.section('param')
    encoder = Encoder(meta['num_heads'], meta['layers'], causal=meta['attn_mask'])
    (q, q_mask), (kv, kv_mask) = steps(fixture['input/q']), steps(fixture['input/kv'])

    def convert(state):
        reader = Reader({f'encoder.{key}': value for key, value in state.items()}, 'encoder')
        params = reader.encoder('encoder', meta['layers'], meta['embed_dim'])
        reader.close()
        return {'params': params}

    def run(variables):
        found = {'cross': encoder.apply(variables, q, q_mask, kv, kv_mask, train=False),
                 'self': encoder.apply(variables, q, q_mask, train=False),
                 'cross_nomask': encoder.clone(causal=False).apply(variables, q, q_mask, kv, kv_mask, train=False)}
        target = np.swapaxes(fixture['input/target'], 0, 1)
        return jnp.square(found['cross'] - target).mean() + jnp.square(found['self']).mean(), found

    variables, to_author = jax.vjp(convert, floats(state))
    with jax.default_matmul_precision('highest'):
        gradient = jax.jit(jax.value_and_grad(run, has_aux=True), compiler_options=QUICK)
        (total, found), grads = gradient(variables)
        grads, = to_author(grads)
    for key, value in found.items():
        parity.assert_close_output(fixture, f'output/{key}', np.swapaxes(value, 0, 1))
    parity.assert_close_loss(fixture, 'loss/total', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()


@pytest.mark.parametrize('name', parity.names('imder_rcan'))
def test_the_recovery_network_equals_the_authors(name):
    fixture = parity.load(name)
    meta = fixture.meta
    group = ResidualGroup(meta['num_blocks'], meta['reduction'])
    x = np.swapaxes(fixture['input/x'], 1, 2)
    mask = np.ones(x.shape[:2], bool)

    def convert(state):
        reader = Reader(state, 'rcan')
        params = reader.residual_group('', meta['num_blocks'], meta['num_channels'], meta['reduction'])
        reader.close()
        return {'params': params}

    def run(variables):
        y = group.apply(variables, x, mask)
        return jnp.square(y).mean(), y

    variables, to_author = jax.vjp(convert, fixture.section('param'))
    with jax.default_matmul_precision('highest'):
        (total, y), grads = jax.jit(jax.value_and_grad(run, has_aux=True), compiler_options=QUICK)(variables)
        grads, = to_author(grads)
    parity.assert_close_output(fixture, 'output/y', np.swapaxes(y, 1, 2))
    parity.assert_close_loss(fixture, 'loss/total', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()


def network_of(meta):
    return diffusion.ScoreNetwork(tuple(meta['channels']), meta['embed_dim'], sigma=meta['sigma'])


@pytest.mark.parametrize('name', parity.names('imder_scorenet'))
def test_the_score_network_equals_the_authors(name):
    fixture = parity.load(name)
    meta = fixture.meta
    network, sigma = network_of(meta), meta['sigma']
    inputs = {k: np.swapaxes(v, -1, -2) if v.ndim > 2 else v for k, v in fixture.section('input').items()}
    mask = np.ones(inputs['x'].shape[:2], bool)
    x, condition, start = (Stream(inputs[k], mask) for k in ('x', 'condition', 'sampler_init_noise'))

    def convert(state):
        reader = Reader(state, 'score network')
        params = imder.score_from_author(reader, '', network, x.x.shape[-1])
        reader.close()
        return {'params': params}

    def matching(variables):
        def score(*args):
            return network.apply(variables, *args)

        t = inputs['loss_random_t_uniform'] * (1 - meta['eps_loss']) + meta['eps_loss']
        return diffusion.score_matching(score, x, condition, t, inputs['loss_z'], sigma).mean()

    def outputs(variables):
        def score(*args):
            return network.apply(variables, *args)

        condition_noise, step_noise = (jnp.asarray(inputs[f'sampler_{k}_noise']) for k in ('condition', 'step'))
        drawn = diffusion.sample(score, start, condition, lambda i: (condition_noise[i], step_noise[i]),
                                 steps=meta['num_steps'], sigma=sigma)
        return {'score_cond': score(x, inputs['t'], condition), 'score_uncond': score(x, inputs['t']), 'sample': drawn}

    variables, to_author = jax.vjp(convert, floats(fixture.section('param')))
    with jax.default_matmul_precision('highest'):
        found = jax.jit(outputs, compiler_options=QUICK)(variables)
        total, grads = jax.jit(jax.value_and_grad(matching), compiler_options=QUICK)(variables)
        grads, = to_author(grads)
    for key, value in found.items():
        parity.assert_close_output(fixture, f'output/{key}', np.swapaxes(value, 1, 2))
    parity.assert_close_loss(fixture, 'loss/score', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()


@pytest.mark.parametrize('name', parity.names('imder_fusion'))
def test_the_fusion_of_complete_streams_is_mult(name):
    fixture = parity.load(name)
    meta, state = fixture.meta, fixture.section('param')
    rates = dict.fromkeys(('text_dropout', 'embed_dropout', 'attention_dropout', 'relu_dropout',
                           'residual_dropout', 'out_dropout'), 0.0)
    model = mult.Model(len(state['out_layer.bias']), width=meta['d'], heads=meta['heads'], layers=meta['nlevels'],
                       kernels=(3, 3, 3), **rates)
    inputs = {key: fixture[f'input/{key}'] for key in model.streams}
    there = np.ones(len(inputs['text']), bool)
    batch = Batch({key: Stream(x, np.ones(x.shape[:2], bool)) for key, x in inputs.items()}, there,
                  {'sentiment': Label(fixture['input/label'], there)})

    def error(out, batch):
        return jnp.abs(out.logits - batch.labels['sentiment'].value).mean()

    out, total, grads = differentiate(mult.params_from_author, model, state, batch, error)
    found = named_outputs(out)
    for key in fixture.section('output'):
        parity.assert_close_output(fixture, f'output/{key}', found[key])
    parity.assert_close_loss(fixture, 'loss/l1', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()


def completed(state, network, blocks, width):
    """A fusion's tensors joined by those of recovery, which it does not use and its fixture does not hold."""
    rng = np.random.default_rng(0)

    def draw(key, *shape):
        return {f'{key}.weight': rng.normal(size=shape).astype(np.float32) / 8,
                f'{key}.bias': np.full(shape[0], 0.1, np.float32)}

    wide, narrow = 2 * width, 2 * width // 16
    for letter in 'lav':
        state = state | {f'score_{letter}.{key}': value for key, value in network.items()}
        state |= draw(f'rec_{letter}.0', wide, width, 1) | draw(f'rec_{letter}.2', width, wide, 1)
        state |= draw(f'rec_{letter}.1.body.{blocks}', wide, wide, 3)
        for i in range(blocks):
            block = f'rec_{letter}.1.body.{i}.body'
            state |= draw(f'{block}.0', wide, wide, 3) | draw(f'{block}.2', wide, wide, 3)
            state |= draw(f'{block}.3.conv_du.0', narrow, wide, 1) | draw(f'{block}.3.conv_du.2', wide, narrow, 1)
    for pair in ('va', 'la', 'lv'):
        state |= draw(f'cat_{pair}', width, wide, 1)
    return state


@pytest.mark.parametrize('name', parity.names('imder_fusion'))
def test_the_whole_model_on_complete_streams_equals_the_authors(name):
    fixture, other = parity.load(name), parity.load('imder_scorenet')
    meta, state = fixture.meta, fixture.section('param')
    model = imder.Model(len(state['out_layer.bias']), width=meta['d'], heads=meta['heads'], layers=meta['nlevels'],
                        channels=tuple(other.meta['channels']), embed=other.meta['embed_dim'], blocks=1, steps=2)
    inputs = {key: fixture[f'input/{key}'] for key in model.streams}
    there = np.ones(len(inputs['text']), bool)
    batch = Batch({key: Stream(x, np.ones(x.shape[:2], bool)) for key, x in inputs.items()}, there,
                  {'sentiment': Label(fixture['input/label'], there)})

    def error(out, batch):
        term = imder.loss(model, out, batch)['label']
        return (term.value * term.weight).sum() / term.weight.sum()

    state = completed(state, other.section('param'), 1, meta['d'])
    out, total, grads = differentiate(imder.params_from_author, model, state, batch, error)
    found = {f'Feature_{key[0]}': value for key, value in out.aux['last'].items()}
    found |= {'Feature_f': out.aux['joined'], 'M': out.logits}
    for key in fixture.section('output'):
        parity.assert_close_output(fixture, f'output/{key}', found[key])
    parity.assert_close_loss(fixture, 'loss/l1', total)
    parity.assert_close_gradients(fixture, grads)
    fixture.assert_all_compared()
