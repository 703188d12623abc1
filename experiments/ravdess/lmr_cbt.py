"""LMR-CBT on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/lmr_cbt --data DIR --folds parts --seeds 3

Whisper stands for the text, which the action units change.
The protocol is `jmer.train.protocols.ravdess`.
"""

from jmer import zoo
from jmer.train import protocols
from jmer.train.experiment import Experiment

STREAMS = ('whisper', 'vision')


def get() -> Experiment:
    model = zoo.create('lmr_cbt', classes=8, streams=STREAMS, layers=1, causal=False, text_dropout=0.1,
                       lstm_dropout=0.3, embed_dropout=0.1)
    return protocols.ravdess(model, rate=3e-3)


def paper() -> Experiment:
    """The authors' sizes."""
    return protocols.ravdess(zoo.create('lmr_cbt', classes=8, streams=STREAMS))
