"""Sound files as log-mel spectrograms and as cepstra.

The convention is that of `librosa.feature.melspectrogram` with its defaults and these sizes, so
that features can be checked, or computed elsewhere:

    16 kHz, mono (mean of the channels); frames of 400 samples (25 ms), which is also the length of
    the FFT, every 160 (10 ms); frame k is centred on sample 160 k and zeros stand beyond the ends,
    hence 1 + samples // 160 frames; periodic Hann window; power spectrum; 64 triangular bands from
    0 to 8 kHz, equally spaced on Slaney's mel scale and of equal area; natural logarithm of
    max(power, 1e-10).

Slaney's scale is linear up to 1 kHz and logarithmic above (Slaney, Auditory Toolbox, 1998). Cepstra are the
first coefficients of the orthonormal discrete cosine transform (DCT-II) of a frame of it.
"""

import functools
import os
import zlib
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

RATE = 16_000
"""Samples a second."""
WINDOW = 400
HOP = 160
BANDS = 64
CEPSTRA = 39
FRAME_RATE = RATE / HOP
"""Frames a second."""
WIDTHS = {'audio': BANDS, 'mfcc': CEPSTRA}
"""Features of a frame, by what corpora call the stream."""
FLOOR = 1e-10

_BLOCK = 2048   # frames transformed at once: an hour of sound must not take a gigabyte


def read(path: str | os.PathLike) -> Float[np.ndarray, 't']:
    """The samples of a sound file (wav, flac, and what else libsndfile reads), mono, at `RATE`.

    Raises FileNotFoundError, or ValueError naming the file where it cannot be read, holds NaN or
    infinite samples, or is shorter than one window.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such sound file')
    try:
        samples, rate = soundfile.read(path, dtype='float32', always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:   # TypeError: a .raw file has no header
        raise ValueError(f'{path}: cannot be read as sound: {error}') from error
    if not np.isfinite(samples).all():
        where = np.argwhere(~np.isfinite(samples))[0][0]
        raise ValueError(f'{path}: sample {where} is NaN or infinite')
    samples = samples.mean(axis=1)
    if rate != RATE and len(samples):
        samples = soxr.resample(samples, rate, RATE)
    if len(samples) < WINDOW:
        raise ValueError(f'{path}: found {len(samples)} samples ({len(samples) / RATE:.3f} s) at '
                         f'{RATE} Hz, expected at least {WINDOW} ({WINDOW / RATE:.3f} s)')
    return samples


def log_mel(samples: Float[np.ndarray, 't']) -> Float[np.ndarray, 'frames bands']:
    """The log-mel spectrogram of mono samples at `RATE`: float32 [1 + t // HOP, BANDS].

    Computed in float64, because the weakest bands of a loud frame would else be rounding noise.
    """
    padded = np.pad(samples.astype(np.float64), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    power = [_power(frames[k:k + _BLOCK]) @ filters() for k in range(0, len(frames), _BLOCK)]
    return np.log(np.maximum(np.concatenate(power), FLOOR)).astype(np.float32)


def cepstra(frames: Float[np.ndarray, 'frames bands']) -> Float[np.ndarray, 'frames cepstra']:
    """The cepstra of a log-mel spectrogram: float32 [frames, CEPSTRA]; the first tells how loud a frame is."""
    return (frames.astype(np.float64) @ _cosines()).astype(np.float32)


def streams(samples: Float[np.ndarray, 't']) -> dict[str, Float[np.ndarray, 'frames _']]:
    """All that is computed here of mono samples at `RATE`: 'audio', the log-mel spectrogram, and 'mfcc'."""
    frames = log_mel(samples)
    return {'audio': frames, 'mfcc': cepstra(frames)}


def add_noise_at_snr(samples: Float[np.ndarray, 't'], snr: float, name: str) -> Float[np.ndarray, 't']:
    """White Gaussian noise, weaker than the mean power of the samples by `snr` decibels.

    name: of the clip; the same name always gets the same noise.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    deviation = np.sqrt(np.mean(np.square(samples, dtype=np.float64))) * 10 ** (-snr / 20)
    return (samples + deviation * rng.standard_normal(len(samples))).astype(np.float32)


def _power(frames: Float[np.ndarray, 't window']) -> Float[np.ndarray, 't bins']:
    spectrum = np.fft.rfft(frames * _hann())
    return spectrum.real ** 2 + spectrum.imag ** 2


@functools.cache
def _hann() -> Float[np.ndarray, 'window']:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


@functools.cache
def _cosines() -> Float[np.ndarray, 'bands cepstra']:
    """The first columns of the DCT-II, each of length one."""
    cosines = np.cos(np.pi * np.outer(np.arange(BANDS) + 0.5, np.arange(CEPSTRA)) / BANDS)
    cosines /= np.linalg.norm(cosines, axis=0, keepdims=True)
    cosines.flags.writeable = False   # they are shared by all callers
    return cosines


@functools.cache
def filters() -> Float[np.ndarray, 'bins bands']:
    """The weight of each FFT bin in each mel band."""
    top = _mel(RATE / 2)
    edges = _hertz(np.linspace(0, top, BANDS + 2))
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    weights = np.maximum(triangles, 0) * 2 / (high - low)
    weights.flags.writeable = False   # it is shared by all callers
    return weights


# Slaney's scale: 3 mel each 200 Hz up to 1 kHz (15 mel); from there 27 mel for a factor of 6.4.
_KNEE_HERTZ, _KNEE_MEL, _STEP = 1000.0, 15.0, np.log(6.4) / 27


def _mel(hertz: float) -> float:
    if hertz < _KNEE_HERTZ:
        return hertz * 3 / 200
    return _KNEE_MEL + float(np.log(hertz / _KNEE_HERTZ)) / _STEP


def _hertz(mel: Float[np.ndarray, 'n']) -> Float[np.ndarray, 'n']:
    # The exponent of the lower part is not used; bounding it keeps the discarded branch quiet.
    upper = _KNEE_HERTZ * np.exp(_STEP * np.maximum(mel - _KNEE_MEL, 0))
    return np.where(mel < _KNEE_MEL, mel * 200 / 3, upper)
