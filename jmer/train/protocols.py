"""The protocols under which systems are compared: the same items, features, sides, choice of the epoch.

A recipe gives its model and says what it needs besides; what is common to all recipes of a corpus stands here, so
that two figures of a table differ by the model alone. Utterance and speech models read every turn of a conversation
by itself, conversation models read the whole.
"""

import flax.linen as nn

from jmer import zoo
from jmer.data.splits import Protocol
from jmer.train.experiment import Data, Experiment, Loss, Optimizer


def mosi(
    model: nn.Module, *, target: str = 'polarity', rate: float = 1e-3, weight_decay: float = 0.1, epochs: int = 30
) -> Experiment:
    """CMU-MOSI, the features and the split of Poria et al. (ACL 2017): polarity (two classes), or sentiment.

    Ten videos of the training part choose the epoch, by accuracy or by the mean absolute error; the test part judges.
    """
    dialogues = _reads_dialogues(model)
    return Experiment(
        model=model,
        data=Data('mosi', zoo.streams_of(model), target=target, turns=not dialogues,
                  protocol=Protocol(test=('test',), held_out=10), batch_size=8 if dialogues else 64,
                  buckets=2 if dialogues else 1),
        optimizer=_optimizer(rate, weight_decay, clip=1.0 if dialogues else 0.0),
        epochs=epochs,
        monitor='accuracy' if target == 'polarity' else 'mae',
    )


def meld(model: nn.Module, *, rate: float = 1e-3, weight_decay: float = 0.1, epochs: int = 8) -> Experiment:
    """MELD, sentence embeddings of the transcripts (MiniLM, 384 features), seven classes.

    The owners' train part trains, their dev part chooses the epoch by weighted F1, their test part judges.
    Lines (or dialogues of one line) that stand in dev or test word for word do not train.
    """
    return _series('meld', 'dev', model, rate, weight_decay, epochs)


def emorynlp(model: nn.Module, *, rate: float = 1e-3, weight_decay: float = 0.1, epochs: int = 15) -> Experiment:
    """EmoryNLP, text of the transcripts, seven classes; the owners' parts, as for MELD."""
    return _series('emorynlp', 'valid', model, rate, weight_decay, epochs)


def ravdess(model: nn.Module, *, rate: float = 1e-3, weight_decay: float = 0.1, epochs: int = 25) -> Experiment:
    """RAVDESS, frozen features: Whisper frames at 5 Hz and action units (log-mel at 10 Hz for a third), eight emotions.

    Each fold: train on the other three, three speakers of which choose the epoch by NLL, the fold judges.
    """
    return Experiment(
        model=model,
        # An actor has 60 clips, so 60 leaves no small last batch to disturb batch statistics.
        data=Data('ravdess', zoo.streams_of(model), protocol=Protocol(test=('fold3',), held_out=3), batch_size=60,
                  pool=tuple((name, 10) for name in zoo.streams_of(model) if name == 'audio'), drop_modalities=0.1),
        optimizer=_optimizer(rate, weight_decay, clip=1.0),
        loss=Loss(label_smoothing=0.1),
        epochs=epochs,
        monitor='nll',
    )


def emodb(model: nn.Module, *, rate: float = 1e-3, weight_decay: float = 0.1, epochs: int = 20) -> Experiment:
    """EmoDB, the first two seconds of every utterance at 12.5 Hz, seven emotions.

    Each fold of two speakers judges once; two speakers of the others choose the epoch by UAR.
    """
    streams = zoo.streams_of(model)
    return Experiment(
        model=model,
        # Cut to 25 steps, the owners' uncut files give what the copies of two seconds give.
        data=Data('emodb', streams, protocol=Protocol(test=('fold4',), held_out=2), batch_size=32,
                  pool=tuple((name, 8) for name in streams), truncate=tuple((name, 25) for name in streams)),
        optimizer=_optimizer(rate, weight_decay, clip=1.0),
        loss=Loss(label_smoothing=0.1),
        epochs=epochs,
    )


def toy(model: nn.Module, *, rate: float = 3e-3, weight_decay: float = 1e-4, epochs: int = 20) -> Experiment:
    """The toy corpus, or that of dialogues: six classes, drawn from a known law, see docs/toy.md."""
    dialogues = _reads_dialogues(model)
    return Experiment(
        model=model,
        data=Data('toy-dialogue' if dialogues else 'toy', zoo.streams_of(model),
                  protocol=Protocol(validation=('validation',)), batch_size=16 if dialogues else 64,
                  buckets=1 if dialogues else 2),
        optimizer=_optimizer(rate, weight_decay, clip=1.0),
        epochs=epochs,
    )


def _reads_dialogues(model: nn.Module) -> bool:
    return zoo.family(zoo.name_of(model)) == 'dialogue'


def _series(
    name: str, validation: str, model: nn.Module, rate: float, weight_decay: float, epochs: int
) -> Experiment:
    """Text of the dialogues of a television series, in its owners' parts; rare emotions weigh more in the loss."""
    dialogues = _reads_dialogues(model)
    return Experiment(
        model=model,
        data=Data(name, zoo.streams_of(model), turns=not dialogues,
                  protocol=Protocol(train=('train',), validation=(validation,), test=('test',), copies='drop'),
                  batch_size=32 if dialogues else 128, buckets=2 if dialogues else 1),
        optimizer=_optimizer(rate, weight_decay, clip=1.0 if dialogues else 0.0),
        loss=Loss(balance=0.999),
        epochs=epochs,
        monitor='weighted_f1',
    )


def _optimizer(rate: float, weight_decay: float, clip: float) -> Optimizer:
    return Optimizer('adamw', rate, 'cosine', warmup=0.1, weight_decay=weight_decay, clip=clip)
