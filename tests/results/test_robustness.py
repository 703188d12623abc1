"""The protocol of robustness, on a model whose every answer is known and on one of the zoo."""

import io
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from rich.console import Console

from jmer import checkpoint, zoo
from jmer.data import audio, synthetic, transforms
from jmer.data.corpus import StreamSpec
from jmer.results import robustness
from jmer.train import inputs, use
from jmer.train.experiment import Data
from jmer.types import Output
from tests import batches
from tests.results import subjects


@pytest.fixture(scope='module')
def perturbed():
    """The protocol on the listener, shared: what it says of each set of streams is known."""
    return robustness.perturb(subjects.subject(), seeds=2)


def test_every_pattern_of_presence_has_its_figures(perturbed):
    found = {tuple(row['streams']): row['metrics']['accuracy'] for row in perturbed['patterns']}
    text, sound = 1.0, 21 / 30
    assert found == {
        ('audio',): sound, ('text',): text, ('vision',): 1 / 3, ('audio', 'text'): text,
        ('audio', 'vision'): sound, ('text', 'vision'): text, ('audio', 'text', 'vision'): text,
    }
    assert perturbed['clean']['accuracy'] == text and perturbed['n'] == 30


def test_every_perturbation_has_its_curves(perturbed):
    curves = {(c['name'], *c['streams']): c for c in perturbed['curves']}
    assert len(curves) == len(perturbed['curves']) == 2 + 3 + 3 + 1
    for curve in perturbed['curves']:
        assert len(curve['metrics']['accuracy']) == len(curve['levels'])
        if curve['levels'][0] == 0 and curve['unit'] != 'dB':
            assert {name: values[0] for name, values in curve['metrics'].items()} == pytest.approx(
                perturbed['clean'], nan_ok=True)
    lost = curves['missing streams', 'audio', 'text', 'vision']['metrics']
    assert lost['accuracy'][-1] < lost['accuracy'][2] <= 1
    assert curves['noise on features', 'text']['worst']['accuracy'] < 1
    for kind in ('noise on features', 'delay'):
        assert curves[kind, 'vision']['worst'] == pytest.approx(perturbed['clean'], nan_ok=True)
    # Text that is late by 8 steps has nothing left of it, and the sound alone is right in 21 of 30.
    assert curves['delay', 'text']['metrics']['accuracy'] == pytest.approx([1, 1, 0.9, 0.7, 0.7], abs=0.15)
    assert curves['delay', 'text']['metrics']['accuracy'][-1] == 21 / 30


def test_the_same_seeds_give_the_same_result(perturbed):
    again = robustness.perturb(subjects.subject(), seeds=2)
    assert json.dumps(again) == json.dumps(perturbed)


def test_one_program_serves_all_levels_streams_draws_and_batches():
    traced = []

    def change(batch, key, level):
        traced.append(level)
        return transforms.add_noise_at_snr(batch, key, level)

    judged = subjects.subject()
    run = robustness.compile_sums(judged, change)
    for levels in ((20.0, 0.0), (10.0, 5.0)):
        settings = (jax.random.split(jax.random.key(0), 2), jnp.asarray(levels))
        made = [batch for _, batch in robustness.batches(judged).sweep()]
        assert len(made) == 4
        robustness.figures_of(run, judged, settings, made)
    assert len(traced) == 1


def test_keys_differ_from_batch_to_batch():
    judged = subjects.subject(16)
    batch = next(iter(robustness.batches(judged).sweep()))[1]
    run = robustness.compile_sums(judged, lambda batch, key: transforms.add_noise(batch, key, 1.0))
    key = jax.random.split(jax.random.key(0), 1)
    once = robustness.figures_of(run, judged, (key,), [batch])[0]
    twice = robustness.figures_of(run, judged, (key,), [batch, batch])[0]
    assert once['nll'] != twice['nll']


def test_a_curve_by_hand():
    figures = [[{'accuracy': 0.8, 'mae': 1.0}, {'accuracy': 0.6, 'mae': 1.2}],
               [{'accuracy': 0.5, 'mae': 2.0}, {'accuracy': 0.5, 'mae': 2.0}],
               [{'accuracy': 0.4, 'mae': 3.5}, {'accuracy': 0.2, 'mae': 2.5}]]
    curve = robustness.curve('noise', 'dB', ['audio'], (20.0, 10.0, 5.0), figures)
    assert curve['metrics']['accuracy'] == pytest.approx([0.7, 0.5, 0.3])
    assert curve['area']['accuracy'] == pytest.approx((10 * 0.6 + 5 * 0.4) / 15)
    assert curve['area']['mae'] == pytest.approx((10 * 1.55 + 5 * 2.5) / 15)
    assert curve['worst'] == {'accuracy': 0.2, 'mae': 3.5}


def test_a_trace_of_what_is_missing_is_found(monkeypatch):
    judged = subjects.subject(9)
    batch = next(iter(robustness.batches(judged).sweep()))[1]
    assert robustness.trace_check(subjects.Listener(), {}, batch) == 0.0
    assert robustness.trace_check(subjects.Listener(leaky=True), {}, batch) > 1

    class Careless(nn.Module):
        """Writes NaN where it should be silent."""

        @nn.compact
        def __call__(self, batch, *, train):
            x = batch.streams['text']
            return Output(jnp.sum(jnp.where(x.mask[..., None], x.x, x.x * jnp.inf), 1), {})

    assert robustness.trace_check(Careless(), {}, batch) > 1e38
    monkeypatch.setattr(robustness, 'PROTOCOL', ())
    for model in (subjects.Listener(leaky=True), Careless()):
        assert robustness.perturb(judged._replace(model=model))['trace'] > 1, 'NaN is no small trace either'


def test_a_trace_of_an_absent_speaker_is_found():
    class Counter(nn.Module):
        """Counts the turns of the second speaker, absent or not."""

        @nn.compact
        def __call__(self, batch, *, train):
            count = jnp.sum(batch.speakers, -1, keepdims=True)
            return Output(jnp.broadcast_to(count[..., None], (*batch.present.shape, 1)).astype(float), {})

    whole = batches.dialogues()
    assert robustness.trace_check(Counter(), {}, whole) == 0.0
    assert robustness.trace_check(Counter(), {}, batches.pad(whole)) > 0


STREAMS = ('vision', 'text', 'audio')


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Weights of a small GMU as they are before training, and a small toy corpus."""
    corpus = synthetic.corpus(dialogues=(2, 1, 2))
    data = Data('toy', STREAMS, batch_size=8, pool=(('audio', 4),))
    model = zoo.create('gmu', classes=6, streams=STREAMS, hidden=4)
    moments = inputs.fit(inputs.shape(corpus.items, data), data)
    first = inputs.standardise(inputs.shape(corpus.items[:2], data), moments)
    batch = robustness.pipeline(first, corpus.spec, STREAMS, 'emotion', 2).stream(0, 0)
    variables = jax.jit(lambda key: model.init(key, batch, train=False))(jax.random.key(0))
    sides = {side: sorted({x.group for x in corpus.items if x.part == side}) for side in synthetic.PARTS}
    fields = checkpoint.plain({'name': 'toy', 'streams': STREAMS, 'batch_size': 8, 'pool': data.pool, 'protocol': {}})
    card = {**zoo.describe(model), **inputs.spec_to_json(corpus.spec, data, moments), 'data': fields, 'groups': sides}
    folder = tmp_path_factory.mktemp('weights')
    checkpoint.publish(folder, variables, card)
    return str(folder), corpus


@pytest.fixture
def small_toy(published, monkeypatch):
    name, corpus = published
    monkeypatch.setattr(inputs, 'read', lambda *_: corpus)
    return name


def test_weights_by_name(small_toy, monkeypatch):
    """The clean figures are those of `jmer evaluate`; the result is JSON, and its tables can be shown."""
    monkeypatch.setattr(robustness, 'PROTOCOL', robustness.PROTOCOL[1:2])
    result = robustness.measure(small_toy, None, 'test', seeds=1, noisy_audio=True)
    evaluated = use.evaluate(small_toy, None, 'test')
    assert result['clean'] == pytest.approx(evaluated['metrics'], rel=1e-5)
    for field in ('n', 'items', 'seen_in_training', 'model', 'corpus', 'split'):
        assert result[field] == evaluated[field], field
    assert result['trace'] == 0.0
    assert result['left_out'] == ['noise in sound files: the model reads no log-mel of sound files']
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    console = Console(file=io.StringIO(), width=160)
    robustness.show(result, console)
    text = console.file.getvalue()
    assert 'emotion, n = ' in text
    assert f'{result["patterns"][0]["metrics"]["accuracy"]:.4f}' in text and 'missing frames (rate)' in text
    assert 'Not an honest test' not in text
    seen = robustness.about(robustness.subject(small_toy, None, 'all'), 'all')
    robustness.warn_of_seen(seen, console)
    assert f'Not an honest test: {seen["seen_in_training"]} of {seen["items"]}' in console.file.getvalue()


def test_features_of_another_version_are_refused(published, monkeypatch):
    name, corpus = published
    newer = corpus._replace(spec=robustness.Spec(**{**vars(corpus.spec), 'version': '2'}))
    monkeypatch.setattr(inputs, 'read', lambda *_: newer)
    with pytest.raises(ValueError, match='toy: found features of version 2, expected version 1'):
        robustness.measure(name, None)


def test_noise_on_samples_is_as_strong_as_the_ratio_says():
    samples = np.sin(np.arange(16_000, dtype=np.float32) / 7)
    for snr in (20.0, 0.0, -10.0):
        noisy = audio.add_noise_at_snr(samples, snr, 'clip')
        ratio = np.mean(samples**2) / np.mean((noisy - samples) ** 2)
        assert abs(10 * np.log10(ratio) - snr) < 0.2 and noisy.dtype == np.float32
    one, same, other = (audio.add_noise_at_snr(samples, 0.0, name) for name in ('clip', 'clip', 'clip2'))
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()


class Loud(nn.Module):
    """Says 'happy' where the mean log-mel is above a threshold."""

    threshold: float

    @nn.compact
    def __call__(self, batch, *, train):
        x = batch.streams['audio']
        mean = jnp.sum(jnp.where(x.mask[..., None], x.x, 0), (1, 2)) / jnp.maximum(jnp.sum(x.mask, 1) * 64, 1)
        return Output(jnp.stack([jnp.full_like(mean, self.threshold), mean, jnp.full_like(mean, -1e3)], -1), {})


def sounding(folder, count=4):
    """Quiet and loud sine waves as items with sound files, and text that hides the sound."""
    judged = subjects.subject(count, stand_ins=(('audio', 'text'),))
    items = []
    for k, item in enumerate(judged.items):
        samples = np.sin(np.arange(4000) / (5 + k)).astype(np.float32) * (0.5 if k % 2 else 0.005)
        soundfile.write(folder / f'{item.id}.wav', samples, audio.RATE, subtype='FLOAT')
        items.append(item._replace(streams={**item.streams, 'audio': audio.log_mel(samples)},
                                   labels={'emotion': np.array(k % 2, np.int32)}))
    streams = tuple(StreamSpec('audio', audio.BANDS, audio.FRAME_RATE) if s.name == 'audio' else s
                    for s in judged.spec.streams)
    spec = robustness.Spec(**{**vars(judged.spec), 'streams': streams})
    level = float(np.median([item.streams['audio'].mean() for item in items]))
    return judged._replace(spec=spec, items=tuple(items), model=Loud(level))


def test_noise_in_sound_files(tmp_path, monkeypatch):
    """Noise raises every band, hence the quiet ones sound loud at last; at 200 dB there is none."""
    judged = sounding(tmp_path)
    monkeypatch.setattr(robustness, 'SOUND_LEVELS', (200.0, -40.0))
    curve = robustness.noisy_sound(judged, tmp_path)
    assert curve['clean']['accuracy'] == 1 and curve['without'] == ['text']
    assert curve['metrics']['accuracy'] == [1.0, 0.5]
    (tmp_path / 'item02.wav').unlink()
    with pytest.raises(LookupError, match='no sound file for 1 items, such as item02'):
        robustness.noisy_sound(judged, tmp_path)
    with pytest.raises(LookupError, match='reads no log-mel'):
        robustness.noisy_sound(subjects.subject(), tmp_path)
