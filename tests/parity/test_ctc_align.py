"""The pseudo-alignment of MulT's authors, and its CTC loss, against their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer import losses
from jmer.author import Reader
from jmer.layers.alignment import Aligner
from jmer.types import Output, Stream

from . import fusion, parity


@pytest.mark.parametrize('name', parity.names('ctc_align'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    steps = fixture.hparams['out_seq_len']
    layer = Aligner(steps)

    def convert(state):
        reader, prefix = Reader(state, 'ctc_align'), 'pred_output_position_inclu_blank'
        inputs = reader.width(f'{prefix}.weight_ih_l0', 1)
        lstm = {f'forward_{k}': reader.lstm(prefix, steps + 1 if k else inputs, steps + 1, f'l{k}') for k in (0, 1)}
        reader.close()
        return {'params': {'lstm': lstm}}

    def forward(variables, inputs, train):
        aligned, scores = layer.apply(variables, fusion.sequence(inputs['x']), train=train)
        return Output(scores, {'aligned': aligned.x}), {}

    def all_losses(out, inputs):
        places = jnp.broadcast_to(jnp.arange(1, steps + 1)[None], (len(out.logits), steps))
        ctc = losses.ctc(out.logits, jnp.ones(out.logits.shape[:2], bool), places, places > 0).sum()
        return {'ctc_sum': ctc, 'total': ctc + jnp.sum(out.aux['aligned'] * fixture['aux/w'])}

    fusion.assert_equals(fixture, convert, forward,
                         lambda out: {'positions': out.logits, 'aligned': out.aux['aligned']}, all_losses)


def test_padding_takes_no_part():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    mask = np.arange(5)[None] < np.array([[3], [5]])
    layer = Aligner(4)
    run = jax.jit(lambda variables, x, mask: layer.apply(variables, Stream(x, mask), train=False))
    variables = layer.init(jax.random.key(0), Stream(x, mask), train=False)
    padded, scores = run(variables, np.where(mask[..., None], x, 1e3), mask)
    alone, own = run(variables, x[:1, :3], mask[:1, :3])
    np.testing.assert_allclose(padded.x[:1], alone.x, atol=1e-6)
    places = np.array([[1, 2]])
    loss = losses.ctc(scores[:1], mask[:1], places, places > 0)
    np.testing.assert_allclose(loss, losses.ctc(own, mask[:1, :3], places, places > 0), rtol=1e-6)
