"""Sound files and log-mel spectrograms."""

import re

import librosa
import numpy as np
import pytest
import soundfile

from jmer.data import audio
from tests.data import trees

RNG = np.random.default_rng(0)
T = np.arange(2 * audio.RATE) / audio.RATE


def reference(samples):
    """The log-mel of librosa, in float64 as ours."""
    power = librosa.feature.melspectrogram(
        y=samples.astype(np.float64), sr=16_000, n_fft=400, hop_length=160, n_mels=64
    )
    return np.log(np.maximum(power, 1e-10)).T


SIGNALS = {
    'noise': RNG.standard_normal(T.size) * 0.1,
    'tone': np.sin(2 * np.pi * 440 * T),
    'sweep': np.sin(2 * np.pi * (50 + 1900 * T) * T),
    'click': np.eye(1, T.size, 1234)[0],
    'silence': np.zeros(T.size),
    'odd length': RNG.standard_normal(12_345) * 1e-3,
    'shortest': RNG.standard_normal(audio.WINDOW),
    'several blocks': RNG.standard_normal(audio._BLOCK * audio.HOP + 777),
}


@pytest.mark.parametrize('name', SIGNALS)
def test_log_mel_is_that_of_librosa(name):
    samples = SIGNALS[name].astype(np.float32)
    found = audio.log_mel(samples)
    assert found.dtype == np.float32
    assert found.shape == (1 + len(samples) // audio.HOP, audio.BANDS)
    np.testing.assert_allclose(found, reference(samples), atol=1e-4, rtol=0)


def test_log_mel_of_speech_is_that_of_librosa():
    for path in sorted((trees.shared('ravdess') / 'audio').glob('*.flac'))[::400]:
        samples = audio.read(path)
        np.testing.assert_allclose(audio.log_mel(samples), reference(samples), atol=1e-4, rtol=0)


@pytest.mark.parametrize('name', ['noise', 'silence', 'shortest'])
def test_cepstra_are_those_of_librosa(name):
    frames = audio.log_mel(SIGNALS[name].astype(np.float32))
    found = audio.cepstra(frames)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, librosa.feature.mfcc(S=frames.T, n_mfcc=audio.CEPSTRA).T, atol=1e-4, rtol=1e-5)


def test_streams_are_as_wide_as_promised():
    widths = {name: x.shape[1] for name, x in audio.streams(SIGNALS['shortest'].astype(np.float32)).items()}
    assert widths == audio.WIDTHS


def test_filters_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match='read-only'):
        audio.filters()[0, 0] = 1


@pytest.mark.parametrize('rate', [8_000, 44_100, 48_000])
def test_another_rate_is_resampled(tmp_path, rate):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    soundfile.write(tmp_path / 'tone.wav', tone, rate, subtype='FLOAT')
    samples = audio.read(tmp_path / 'tone.wav')
    assert samples.shape == (audio.RATE,)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(audio.RATE) / audio.RATE)
    np.testing.assert_allclose(samples[200:-200], expected[200:-200], atol=1e-3)


def test_channels_are_averaged(tmp_path):
    left, right = RNG.uniform(-0.5, 0.5, (2, 1600))
    soundfile.write(tmp_path / 'two.wav', np.stack([left, right], axis=1), 16_000, subtype='FLOAT')
    np.testing.assert_allclose(audio.read(tmp_path / 'two.wav'), (left + right) / 2, atol=1e-6)


def test_flac_and_wav_give_the_same(tmp_path):
    samples = RNG.integers(-20_000, 20_000, 1600).astype(np.int16)
    for name in ('a.wav', 'a.flac'):
        soundfile.write(tmp_path / name, samples, 16_000, subtype='PCM_16')
    np.testing.assert_array_equal(audio.read(tmp_path / 'a.wav'), audio.read(tmp_path / 'a.flac'))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nothing\.wav'):
        audio.read(tmp_path / 'nothing.wav')


@pytest.mark.parametrize('content', [b'', b'RIFF', b'this is no sound at all' * 10])
@pytest.mark.parametrize('name', ['bad.wav', 'bad.flac', 'bad.raw'])
def test_unreadable(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f'{name}: cannot be read')):
        audio.read(tmp_path / name)


@pytest.mark.parametrize('count', [0, 399])
def test_too_short(tmp_path, count):
    soundfile.write(tmp_path / 'short.wav', np.zeros(count), 16_000)
    with pytest.raises(ValueError, match=rf'short.wav: found {count} samples .* at least 400'):
        audio.read(tmp_path / 'short.wav')


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_nan(tmp_path, bad):
    samples = np.zeros(1600, np.float32)
    samples[77] = bad
    soundfile.write(tmp_path / 'nan.wav', samples, 16_000, subtype='FLOAT')
    with pytest.raises(ValueError, match=r'nan.wav: sample 77 is NaN or infinite'):
        audio.read(tmp_path / 'nan.wav')
