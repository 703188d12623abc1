"""bc-LSTM on MELD, sentence embeddings of the transcripts (MiniLM, 384 features). Seven classes.

    jmer train meld/bclstm --data DIR --seeds 5

Trains on the owners' train part, chooses the epoch on dev by weighted F1, judges on test.
Dialogues of one line that stand in dev or test word for word do not train.
"""

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Optimizer


def get() -> Experiment:
    return Experiment(
        model=zoo.create('bclstm', classes=7, streams=('text',), width=128, hidden=128, layers=1,
                         dropout=0.5, input_dropout=0.3),
        data=Data('meld', ('text',), batch_size=32, buckets=4,
                  protocol=Protocol(train=('train',), validation=('dev',), test=('test',), copies='drop')),
        optimizer=Optimizer('adamw', rate=1e-3, schedule='cosine', warmup=0.05, weight_decay=0.01, clip=1.0),
        epochs=15,
        monitor='weighted_f1',
    )
