"""Early fusion on RAVDESS: Whisper frames, action units and published out-of-fold decisions. Eight emotions.

    jmer train ravdess/early_published --data DIR --folds parts --seeds 5

Each fold: train on the other three, three speakers of which choose the epoch, the fold judges. The
caveat of ravdess/late_published holds: the published networks behind the training folds had seen the test fold.
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Loss, Optimizer

STREAMS = ('whisper', 'vision', 'xlsr', 'au_lstm', 'au_mlp')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('early', classes=8, streams=STREAMS, hidden=(256,), pooling='mean_std', dropout=0.5),
        data=Data('ravdess', STREAMS, protocol=Protocol(test=('fold3',), held_out=3), batch_size=60,
                  pool=(('vision', 0),), drop_modalities=0.2),
        optimizer=Optimizer('adamw', rate=1e-3, schedule='cosine', warmup=0.1, weight_decay=0.3),
        loss=Loss(label_smoothing=0.1),
        epochs=40,
        monitor='nll',
    )
