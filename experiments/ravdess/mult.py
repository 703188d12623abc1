"""MulT on RAVDESS, frozen features: Whisper frames at 5 Hz and action units. Eight emotions.

One fold (train on three of the four, three speakers of those choose the epoch, the fourth judges):

    jmer train ravdess/mult --data DIR --set data.protocol.test=fold3

Log-mel frames, which jmer computes from any sound file, stand in where Whisper's are missing.
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Loss, Optimizer

STREAMS = ('whisper', 'audio', 'vision')


def get() -> Experiment:
    return Experiment(
        model=zoo.create('mult', classes=8, streams=STREAMS, width=40, heads=4, layers=2, causal=False,
                         text_dropout=0.3, embed_dropout=0.2, out_dropout=0.3),
        data=Data('ravdess', STREAMS, protocol=Protocol(test=('fold3',), held_out=3), batch_size=32,
                  pool=(('audio', 10),), drop_modalities=0.2, stand_ins=(('audio', 'whisper'),)),
        optimizer=Optimizer('adamw', rate=1e-3, schedule='cosine', warmup=0.1, weight_decay=0.1, clip=1.0),
        loss=Loss(label_smoothing=0.1),
        epochs=30,
    )
