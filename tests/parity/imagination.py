"""What the parity tests of MMIN and IF-MMIN share."""

import jax
import numpy as np

from jmer.types import Batch, Label, Stream

STREAMS = {'A': 'audio', 'L': 'text', 'V': 'vision'}


def fields(fixture):
    """The fields that both models have. The rates are no matter without training; one is a sign of a place."""
    meta = fixture.meta
    return {
        'classes': meta['output_dim'], 'width': meta['embd'], 'text_channels': meta['textcnn_out'],
        'audio_pooling': POOLINGS[meta['embd_method_a']], 'vision_pooling': POOLINGS[meta['embd_method_v']],
        'narrowing': tuple(meta['AE_layers']), 'blocks': meta['n_blocks'], 'hidden': tuple(meta['cls_layers']),
        'batch_norm': meta['bn'], 'dropout': meta['dropout_rate'], 'label_weight': meta['ce_weight'],
        'imagination_weight': meta['mse_weight'], 'read_zeros': True,
    }


POOLINGS = {'maxpool': 'max', 'last': 'last', 'attention': 'sum'}


def batch_of(fixture, there=None):
    """The inputs; there [b 3]: which of A, V and L are present (default: all)."""
    there = np.ones((len(fixture['input/A']), 3), bool) if there is None else there.astype(bool)
    streams = {}
    for m, letter in enumerate('AVL'):
        x = fixture[f'input/{letter}']
        streams[STREAMS[letter]] = Stream(x, np.broadcast_to(there[:, m, None], x.shape[:2]))
    present = np.ones(len(there), bool)
    return Batch(streams, present, {'emotion': Label(fixture['input/label'], present)})


def mean(term):
    return (term.value * term.weight).sum() / term.weight.sum()


def taught(module, variables, batch):
    with jax.default_matmul_precision('highest'):
        return jax.jit(lambda variables, batch: module.apply(variables, batch, train=False))(variables, batch)
