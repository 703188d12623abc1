"""GMU on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

    jmer train ravdess/gmu --data DIR --folds parts --seeds 5

Each fold: train on the other three, three speakers of which choose the epoch, the fold judges.
Log-mel frames, which jmer computes from any sound file, stand in where Whisper's are missing.
"""

import dataclasses

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Loss, Optimizer

STREAMS = ('audio', 'whisper', 'vision')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('gmu', classes=8, streams=STREAMS, hidden=256, pooling='mean_std', dropout=0.3),
        # An actor has 60 clips, so 60 leaves no small last batch to disturb the batch statistics.
        data=Data('ravdess', STREAMS, protocol=Protocol(test=('fold3',), held_out=3), batch_size=60,
                  pool=(('audio', 10), ('vision', 0)), drop_modalities=0.2, stand_ins=(('audio', 'whisper'),)),
        optimizer=Optimizer('adamw', rate=1e-3, schedule='cosine', warmup=0.1, weight_decay=1.0),
        loss=Loss(label_smoothing=0.1),
        epochs=40,
        monitor='nll',
    )


def paper() -> Experiment:
    """The authors' sizes."""
    return dataclasses.replace(get(), model=zoo.create('gmu', classes=8, streams=STREAMS))
