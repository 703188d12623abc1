"""Cross-attention CNN on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/cross_attention_cnn --data DIR --folds parts --seeds 3

Frames, not the waveform; the action units stand for the text.
The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('whisper', 'vision')


def get() -> Experiment:
    model = zoo.create('cross_attention_cnn', classes=8, streams=STREAMS, widths=(64, 64), kernels=(3, 3),
                       strides=(1, 1), text_widths=(64,), lstm=32, heads=4, hidden=128, dropout=0.3)
    return protocols.ravdess(model)


def paper() -> Experiment:
    """The sizes of the model's file, mostly inferred; frames, unlike samples, are not strided over."""
    model = zoo.create('cross_attention_cnn', classes=8, streams=STREAMS, strides=(1, 1, 1, 1, 1))
    return protocols.ravdess(model)
