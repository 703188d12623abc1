"""MMER and its four losses against the authors' numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jmer.models.utterance import mmer
from jmer.types import Stream

from . import fusion, parity


def adapt(fixture):
    """Ours averages CTC over the batch."""
    h, state = fixture.hparams, fixture.section('param')
    weight = h['lambda_value']
    return mmer.Model(h['classes'], width=h['hidden_size'], heads=h['num_attention_heads'],
                      hidden=h['intermediate_size'], vocabulary=len(state['model_mmi.ctc_linear.bias']),
                      augmented=True, ctc_weight=weight * len(fixture['input/labels']), contrast_weight=weight,
                      dropout=0.0)


def frames(samples):
    """How many frames wav2vec 2.0 makes of so many samples."""
    for size, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True):
        samples = (samples - size) // stride + 1
    return samples


def to_batch(inputs):
    def streams(prefix, suffix):
        x = inputs[f'{prefix}wav2vec_features']
        heard = np.arange(x.shape[1])[None] < frames(inputs[f'{prefix}audio_length'])[:, None]
        return {f'text{suffix}': Stream(inputs[f'{prefix}text_features'],
                                        jnp.asarray(inputs[f'{prefix}text_mask'] > 0)),
                f'audio{suffix}': Stream(x, jnp.asarray(heard))}

    letters = inputs['ctc_labels']
    transcript = Stream(jnp.asarray(letters[..., None], jnp.float32), jnp.asarray(letters >= 0))
    return fusion.batch_of(inputs['labels'].astype(np.int32), **streams('', ''), **streams('aug_', '_augmented'),
                           transcript=transcript)


@pytest.mark.parametrize('name', parity.names('mmer'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = adapt(fixture)
    plain = model.clone(ctc_weight=float(len(fixture['input/labels'])), contrast_weight=1.0)

    def all_losses(out, inputs):
        batch = to_batch(inputs)
        raw = {key: fusion.total(term) for key, term in mmer.loss(plain, out, batch).items()}
        total = sum(fusion.total(term) for term in mmer.loss(model, out, batch).values())
        return {'cls': raw['label'], 'cl_self': raw['contrast'], 'cl': raw['contrast_augmented'],
                'ctc': raw['ctc'], 'total': total}

    fusion.assert_equals(
        fixture,
        lambda state: mmer.params_from_author(state, model),
        lambda variables, inputs, train: (model.apply(variables, to_batch(inputs), train=train), {}),
        lambda out: {'logits': out.logits, 'fused': out.aux['fused']},
        all_losses,
    )
