"""jmer: a JAX model zoo for multimodal emotion recognition.

    import jmer

    jmer.list_models(tag='gated')                     # what there is
    model = jmer.create('gmu', classes=8)             # a Flax module; its fields are its configuration
    model, variables, card = jmer.load('gmu/ravdess')  # trained weights
    output = jmer.predict(model, variables, batch)    # a pure function, yours to jit, vmap and grad

Importing jmer imports neither TensorFlow nor Orbax; both come with the functions that need them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jmer.types import Batch, Label, Output, Stream
from jmer.zoo import build, create, describe, list_models

if TYPE_CHECKING:
    from jmer.pretrained import load
    from jmer.train.evaluate import predict
    from jmer.train.online import online

__all__ = ['Batch', 'Label', 'Output', 'Stream', 'build', 'create', 'describe', 'list_models', 'load',
           'online', 'predict']

_LATER = {'load': 'jmer.pretrained', 'online': 'jmer.train.online', 'predict': 'jmer.train.evaluate'}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
