"""GCNet against the authors' code, every dialogue alone, with modalities missing."""

import jax
import jax.numpy as jnp
import pytest

from jmer.models.dialogue import gcnet
from jmer.types import Batch, Output

from . import dialogues, graphs, parity


def model_of(fixture):
    h = fixture.hparams
    return gcnet.Model(
        h['n_classes'], width=h['hidden'], speakers=h['n_speakers'], attention=h['time_attn'],
        past=h['windowf'], future=h['windowp'])     # theirs are windows of the sender


def batches(fixture, rows=None):
    """Missing modalities are masked; their truth stays beneath the mask, where the model must not find it."""
    batch = dialogues.batch_of(fixture, rows)
    rows = slice(None) if rows is None else rows
    there = fixture['input/exist_mask'].swapaxes(0, 1)[rows] > 0
    streams = {name: batch.streams[name]._replace(mask=batch.present & there[..., m])
               for m, name in enumerate(('audio', 'text', 'vision'))}
    return batch._replace(streams=streams)


def loss(model, out: Output, batch: Batch):
    """As if the model had hidden what is missing, and the loss knew all."""
    masks = jnp.stack([batch.streams[name].mask for name in model.streams], 1)
    hidden = {'dropped': batch.present[:, None] & ~masks}
    whole = {name: s._replace(mask=batch.present) for name, s in batch.streams.items()}
    # A dialogue's reconstruction counts by its own turns, as the labels are taken from it alone.
    turns = batch.labels['emotion'].mask
    terms = gcnet.loss(model, out._replace(aux=out.aux | hidden), batch._replace(streams=whole))
    return {name: term._replace(weight=term.weight * turns) for name, term in terms.items()}


@pytest.mark.parametrize('name', parity.names('gcnet'))
def test_equals_the_authors(name):
    fixture = parity.load(name)
    model = model_of(fixture)

    def named(out, row, turns):
        arrays = {
            'logits': out.logits[row, :turns],
            'hidden': out.aux['hidden'][row, :turns],
            'recon': out.aux['reconstruction'][row, :turns],
            'lstm_out': out.aux['context'][row, :turns],
        }
        if len(out.logits) > 1:
            terms = loss(model, out, graphs.only(batches(fixture), row))
            arrays['loss_cls'] = dialogues.worth(terms['label'])[None]
            arrays['loss_rec'] = dialogues.worth(terms['reconstruction'])[None]
        return arrays

    graphs.compare(fixture, gcnet, model, named, loss, batches=batches)
    fixture.assert_all_compared()


def test_training_hides_streams_but_one():
    """Hidden streams are drawn by key, are there, and their truth is not seen."""
    fixture = parity.load('gcnet')
    model = model_of(fixture).clone(modality_dropout=0.7)
    batch = batches(fixture)
    variables = gcnet.params_from_author(fixture.section('param'), model)

    run = jax.jit(lambda batch: model.apply(variables, batch, train=True, rngs={'dropout': jax.random.key(0)}),
                  compiler_options=dialogues.QUICK)
    out = run(batch)
    there = jnp.stack([batch.streams[name].mask for name in model.streams], 1)
    dropped = out.aux['dropped']
    assert dropped.any() and not (dropped & ~there).any()
    assert ((there & ~dropped).any(1) == there.any(1)).all()
    hidden = {name: s._replace(x=jnp.where(dropped[:, m, :, None], 7.0, s.x))
              for m, (name, s) in enumerate((n, batch.streams[n]) for n in model.streams)}
    assert (run(batch._replace(streams=hidden)).logits == out.logits).all()
