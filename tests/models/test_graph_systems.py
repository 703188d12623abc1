"""The graph systems in their other forms: finite, blind to what padding holds, no parameter without effect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmer import zoo
from tests import batches

STREAMS = ('text', 'audio', 'vision')
SMALL = {'width': 3, 'hidden': 4}
DIALOGUEGCN = SMALL | {'streams': STREAMS, 'bases': 2, 'max_turns': 4, 'past': -1, 'future': 99}
DAGERC = {'streams': STREAMS, 'hidden': 4, 'layers': 1, 'own_turns': 2}
M3NET = {'width': 4, 'hidden': 3, 'hyper_layers': 1, 'gated_layers': 1}
GRAPHCFC = {'width': 3, 'base_width': 4, 'layers': (1, 1, 1), 'heads': 2}

FORMS = {
    'dialoguegcn-gru': DIALOGUEGCN | {'base': 'gru', 'attention': False},
    'dialoguegcn-none': DIALOGUEGCN | {'base': 'none', 'speakers': 1},
    'dialoguegcn-dialoguernn': DIALOGUEGCN | {'base': 'dialoguernn', 'global_width': 3, 'party_width': 4},
    'mmgcn-pair': SMALL | {'streams': ('audio', 'text'), 'recurrent': ('audio', 'text'), 'speaker_streams': ()},
    'mmdfn-plain': SMALL | {'layers': 2, 'memory': False, 'keep_input': False, 'party_weights': (),
                            'recurrent': (), 'modal_vectors': True},
    'mmdfn-padded': SMALL | {'layers': 2, 'padded_parties': True},
    'cogmen-lstm': SMALL | {'layers': 1, 'context': 'lstm', 'keep_context': True, 'highway': True, 'speakers': 1},
    'cogmen-gru': SMALL | {'layers': 1, 'context': 'gru'},
    'dagerc-linear': DAGERC | {'gather': 'linear', 'attention': 'global'},
    'dagerc-dot': DAGERC | {'gather': 'dot'},
    'm3net-layer': M3NET | {'norm': 'layer', 'slot_weights': True, 'keep_input': True, 'slots': (9, 18)},
    'm3net-dialogue': M3NET | {'norm': 'dialogue', 'project_text': False},
    'gcnet-attention': {'width': 2, 'attention': True, 'speakers': 3, 'past': -1},
    'graphmft-pair': {'width': 3, 'base_width': 4, 'layers': (2,), 'streams': ('audio', 'text'),
                      'recurrent': ('gru', 'none'), 'heads': 2},
    'graphcfc-plain': GRAPHCFC | {'relations': False, 'norm_first': True, 'residual': False, 'past': -1,
                                  'dense_layers': (2, 1, 1, 2)},
}


def create(form):
    return zoo.create(form.split('-')[0], classes=batches.CLASSES, **FORMS[form])


@pytest.mark.parametrize('form', FORMS)
def test_every_form_is_blind_to_padding(form):
    """With three speakers, one more than most models know, and a dialogue of a single turn."""
    model, batch = create(form), batches.dialogues()
    short = np.array([[True] * 6, [True] * 6, [True] + [False] * 5])
    batch = batch._replace(
        present=short, speakers=np.where(short, batch.speakers + (np.arange(6) == 4), 0).astype(np.int32),
        streams={name: s._replace(mask=short) for name, s in batch.streams.items()})
    variables = jax.jit(lambda key: model.init(key, batch, train=False))(jax.random.key(0))

    @jax.jit
    def run(params, batch):
        def objective(params):
            logits = model.apply({**variables, 'params': params}, batch, train=False).logits
            return jnp.sum(jnp.where(batch.present[..., None], logits, 0) ** 2), logits

        return jax.grad(objective, has_aux=True)(params)

    gradient, logits = run(variables['params'], batches.pad(batch))
    other, same = run(variables['params'], batches.pad(batch, garbage=1.0))
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits[:3, :6][short], same[:3, :6][short])
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
        beside = path[0].key.startswith(('head_', 'reconstruct'))       # these act in the loss only
        assert np.isfinite(a).all() and (beside or np.abs(a).max() > 0), jax.tree_util.keystr(path)


FAULTS = {
    'dialoguegcn': ({'base': 'rnn'}, "base: found 'rnn'"),
    'cogmen': ({'context': 'rnn'}, "context: found 'rnn'"),
    'dagerc': ({'gather': 'mean'}, "gather: found 'mean'"),
    'mmdfn': ({'party_weights': (1.0,)}, r'party_weights: found \(1.0,\)'),
    'm3net': ({'norm': 'none', 'texts': ('text', 'audio'), 'streams': ()}, r'found widths \[5, 7\]'),
    'graphmft': ({'layers': (1,)}, r'layers: found'),
    'graphcfc': ({'layers': (1,)}, r'layers: found \(1,\)'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_fields_that_do_not_fit_are_named(name):
    fields, message = FAULTS[name]
    model = zoo.create(name, classes=3, **fields)
    with pytest.raises(ValueError, match=f'{name}: .*{message}'):
        jax.eval_shape(lambda: model.init(jax.random.key(0), batches.dialogues(), train=False))
