"""The registry: a model's name is its file's name, and the folder says what goes in.

`gmu` is `jmer/models/utterance/gmu.py`. Nothing has to be registered: a file that defines `Model` and
`TAGS` is part of the zoo.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import Any

import flax.linen as nn

from jmer import models
from jmer.layers.checked import streams_of as streams_of

FAMILIES = ('utterance', 'dialogue', 'speech')
KINDS = ('class', 'multilabel', 'regression', 'distribution')


def _names() -> dict[str, str]:
    """Family of every model, by name."""
    found: dict[str, str] = {}
    for family in FAMILIES:
        package = importlib.import_module(f'{models.__name__}.{family}')
        found |= {entry.name: family for entry in pkgutil.iter_modules(package.__path__)}
    return found


def module(name: str) -> ModuleType:
    """The file of a model. Raises ValueError with the nearest names for an unknown one."""
    known = _names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3) or sorted(known)
        raise ValueError(f'no model is called {name!r}; did you mean {", ".join(near)}?')
    return importlib.import_module(f'{models.__name__}.{known[name]}.{name}')


def family(name: str) -> str:
    """'utterance', 'dialogue' or 'speech': what goes into the model."""
    return module(name).__name__.split('.')[-2]


def about(name: str) -> str:
    """What a model is, and its paper: the first line of its file."""
    return (module(name).__doc__ or '').splitlines()[0]


def list_models(family: str | None = None, tag: str | None = None) -> list[str]:
    """Names of the models, of one family or with one tag of the survey's words if asked for."""
    if family is not None and family not in FAMILIES:
        raise ValueError(f'no family is called {family!r}; they are {", ".join(FAMILIES)}')
    if tag is not None and tag not in tags():
        raise ValueError(f'no model bears the tag {tag!r}; the tags are {", ".join(tags())}')
    names = sorted(name for name, of in _names().items() if family in (None, of))
    return [name for name in names if tag is None or tag in module(name).TAGS]


def tags() -> list[str]:
    """Every tag that some model bears."""
    return sorted({tag for name in _names() for tag in module(name).TAGS})


def labels(name: str) -> tuple[str, ...]:
    """The kinds of target (`data.corpus.Target.kind`) that a model can be trained on.

    Without a loss of its own it takes the trainer's, of which there is one for every kind. A loss of its own that
    takes others than classes and real values says so by `LABELS` in the model's file.
    """
    file = module(name)
    return getattr(file, 'LABELS', ('class', 'regression')) if hasattr(file, 'loss') else KINDS


def check_speakers(model: nn.Module, found: int) -> None:
    """Raises ValueError where a dialogue has more speakers than the model has states for.

    For whoever sees the data: within a compiled program further speakers share the last state, silently.
    """
    for field in ('speakers', 'listeners'):
        known = getattr(model, field, 0)
        if 0 < known < found:
            name = type(model).__module__.rsplit('.', 1)[-1]
            raise ValueError(f'{name}: field {field}: found a dialogue of {found} speakers, expected at most {known}')


def create(name: str, **fields: Any) -> nn.Module:
    """The model of that name with these fields; lists are taken as tuples.

    Raises ValueError for an unknown name, an unknown field or one that is missing.
    """
    cls = module(name).Model
    known = {f.name: f for f in dataclasses.fields(cls) if f.name not in ('parent', 'name')}
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1) or sorted(known)
            raise ValueError(f'{name} has no field {field!r}; did you mean {", ".join(near)}?')
    missing = [f for f, spec in known.items()
               if f not in fields and spec.default is spec.default_factory is dataclasses.MISSING]
    if missing:
        raise ValueError(f'{name} needs the field {", ".join(missing)}')
    return cls(**{field: _tuples(value) for field, value in fields.items()})


def name_of(model: nn.Module) -> str:
    """The name under which `create` makes such a model."""
    name = type(model).__module__.rsplit('.', 1)[-1]
    if name not in _names() or type(model) is not module(name).Model:
        raise ValueError(f'{type(model).__qualname__} is not a model of the zoo')
    return name


def describe(model: nn.Module) -> dict[str, Any]:
    """The model as JSON can keep it: its name and all its fields; `build` is the way back."""
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)
              if f.name not in ('parent', 'name')}
    return {'model': name_of(model), 'fields': fields}


def profile(name: str) -> dict[str, Any]:
    """All that is known of a model without creating it, as JSON can keep it."""
    file = module(name)
    fields = {f.name: {'type': str(f.type), 'default': None if f.default is dataclasses.MISSING else f.default}
              for f in dataclasses.fields(file.Model) if f.name not in ('parent', 'name')}
    return {'model': name, 'family': family(name), 'tags': file.TAGS, 'fields': fields,
            'about': file.__doc__, 'about_fields': file.Model.__doc__}


def build(description: dict[str, Any]) -> nn.Module:
    """The model that `describe` described, before or after a passage through JSON."""
    if set(description) != {'model', 'fields'}:
        raise ValueError(f'a description has the keys model and fields, not {sorted(description)}')
    return create(description['model'], **description['fields'])


def _tuples(value: Any) -> Any:
    """JSON knows lists only; fields are tuples, so that a model can be hashed."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
