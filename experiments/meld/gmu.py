"""GMU on MELD, sentence embeddings of the transcripts (MiniLM, 384 features). Seven classes.

    jmer train meld/gmu --data DIR --seeds 5

Turns without their context. Trains on the owners' train part, chooses the epoch on dev, judges on test.
Turns that hold a line of dev or test word for word do not train.
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Optimizer

STREAMS = ('text',)


def get() -> Experiment:
    return Experiment(
        model=zoo.create('gmu', classes=7, streams=STREAMS, hidden=128, dropout=0.5),
        data=Data('meld', STREAMS, turns=True,
                  protocol=Protocol(train=('train',), validation=('dev',), test=('test',),
                                    copies='drop'),
                  batch_size=128),
        optimizer=Optimizer('adamw', rate=1e-3, schedule='cosine', warmup=0.1, weight_decay=0.1),
        epochs=15,
        monitor='weighted_f1',
    )
