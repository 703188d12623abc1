"""An experiment: one frozen dataclass, its overrides from the command line, and its form in JSON.

Two runs with equal experiments (and equal data) are the same run.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import typing
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn

from jmer import shipped, zoo
from jmer.data.splits import Protocol


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads, and how.

    name: the corpus, see `jmer.data.load`.
    streams: the modalities that the model gets.
    target: what is recognised.
    also: further targets that the batches tell, for models whose loss has several tasks; none of them chooses or
        judges anything.
    turns: take every turn of a dialogue as an utterance of its own, for models without context.
    protocol: which parts train, choose and judge.
    batch_size: items in a batch, over all devices.
    buckets: static shapes; more pad less and compile longer.
    standardise: bring features to zero mean and unit deviation, by the training items.
    pool: (stream, steps) pairs: average so many steps into one, all of them for 0.
    truncate: (stream, steps) pairs: keep so many steps.
    drop_modalities: probability that a stream of a training item goes missing.
    noise: deviation of Gaussian noise on the training features.
    frame_drop: probability that a step of a training stream goes missing.
    label_noise: probability that a training item is given another class's label.
    balance: power of the inverse frequency of their class by which training items are drawn; 0 draws every
        item once an epoch, 1 all classes equally often (see `data.pipeline.shares_of`).
    stand_ins: (stream, other) pairs: the stream counts only where the other is missing, as features that
        anybody can compute stand in for better ones.
    """

    name: str
    streams: tuple[str, ...]
    target: str = 'emotion'
    also: tuple[str, ...] = ()
    turns: bool = False
    protocol: Protocol = Protocol()
    batch_size: int = 32
    buckets: int = 1
    standardise: bool = True
    pool: tuple[tuple[str, int], ...] = ()
    truncate: tuple[tuple[str, int], ...] = ()
    drop_modalities: float = 0.0
    noise: float = 0.0
    frame_drop: float = 0.0
    label_noise: float = 0.0
    balance: float = 0.0
    stand_ins: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters move; see `train.optimizers`.

    name: 'adam', 'adamw' or 'sgd'.
    rate: peak learning rate.
    schedule: 'constant', 'linear' or 'cosine' (the last two fall to zero at the end of the run).
    warmup: share of the run over which the rate rises from zero.
    weight_decay: decoupled, for 'adamw'.
    clip: largest global norm of the gradients; 0 is no limit.
    freeze: parameters that stay as they are: patterns over their paths, such as 'encoder/*'.
    perturb: parameters at whose neighbours the gradient is taken a second time (the fast gradient method): patterns.
    perturb_by: how far away these neighbours are, along the parameters' gradients.
    """

    name: Literal['adam', 'adamw', 'sgd'] = 'adamw'
    rate: float = 1e-3
    schedule: Literal['constant', 'linear', 'cosine'] = 'constant'
    warmup: float = 0.0
    weight_decay: float = 1e-4
    clip: float = 0.0
    freeze: tuple[str, ...] = ()
    perturb: tuple[str, ...] = ()
    perturb_by: float = 5.0


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss, where the model's file does not bring its own.

    name: see `losses.supervised`; empty: the usual one for the kind of target.
    class_weights: one for each class; empty: all one.
    label_smoothing: share of the probability that is spread over all classes.
    gamma: exponent of the focal loss.
    balance: how much more the training items of rare classes weigh, 0 to 1, in the losses of all models: not at
        all, or by their inverse frequency at 1 (see `losses.class_balance`).
    """

    name: str = ''
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    gamma: float = 2.0
    balance: float = 0.0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run of the one trainer.

    model: a model of the zoo.
    data, optimizer, loss: see there.
    epochs: passes over the training items, at most.
    monitor: validation metric that chooses the epoch; 'step' takes the last one, and so does a run without
        a validation side.
    patience: evaluations without improvement after which the run stops; 0 never stops it.
    evaluate_every: epochs from one evaluation (and checkpoint) to the next.
    accumulate: parts into which a batch is split to save memory; the step stays the same.
    compute_dtype: precision of the forward and backward pass; parameters and losses stay in float32.
    seed: of initialisation, order of the data, dropout and noise.
    seeds: so many seeds, from `seed` on, are trained at once in one program, each as if it were alone.
    folds: 'parts' lets every part of the corpus judge once (cross-validation over its folds), 'groups' every
        group (leave one speaker out); each fold is a run of its own, and `data.protocol.test` is not used.
    also_test_selected: keep what the test would have chosen, apart: the figure that the literature often
        prints. Costs the disk space of the weights of every evaluation while the run lasts.
    """

    model: nn.Module
    data: Data
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    epochs: int = 50
    monitor: str = 'uar'
    patience: int = 0
    evaluate_every: int = 1
    accumulate: int = 1
    compute_dtype: Literal['float32', 'bfloat16'] = 'float32'
    seed: int = 0
    seeds: int = 1
    folds: Literal['', 'parts', 'groups'] = ''
    also_test_selected: bool = False


def load(name: str) -> Experiment:
    """The experiment that a recipe file's `get()` returns: a path, or '<dataset>/<model>' of those shipped.

    '<dataset>/<model>:paper' asks the same file's `paper()`: the model at its authors' sizes. Raises FileNotFoundError
    for a recipe that is not there, ValueError for one that returns something else.
    """
    file, _, function = name.partition(':')
    path, function = shipped.find('experiments', file, '.py'), function or 'get'
    spec = importlib.util.spec_from_file_location(f'recipe_{path.stem}', path)
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    experiment = getattr(recipe, function)() if hasattr(recipe, function) else None
    if not isinstance(experiment, Experiment):
        raise ValueError(f'{path}: a recipe has a function {function}() that returns an Experiment')
    return experiment


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment in terms that JSON can keep."""
    fields = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(experiment)}
    plain = {name: dataclasses.asdict(value) if isinstance(value, Data | Optimizer | Loss) else value
             for name, value in fields.items() if name != 'model'}
    return {'model': zoo.describe(experiment.model), **plain}


def data_from_json(fields: dict[str, Any]) -> Data:
    """The `Data` that a card or an experiment.json keeps."""
    fields = {name: _tuples(value) for name, value in fields.items()}
    return Data(**{**fields, 'protocol': Protocol(**fields['protocol'])})


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def override(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """The experiment with settings such as 'optimizer.rate=3e-4' or 'data.protocol.test=fold2'.

    A value is a Python literal or a bare word; commas make a tuple. Raises ValueError naming the option
    that does not exist or does not take such a value.
    """
    for setting in settings:
        path, equals, value = setting.partition('=')
        if not equals:
            raise ValueError(f'{setting!r}: a setting has the form option=value')
        experiment = _replace(experiment, path.split('.'), value, path)
    return experiment


def _replace(node: Any, path: list[str], value: str, whole: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(node) if f.name not in ('parent', 'name')
             or not isinstance(node, nn.Module)}
    name, rest = path[0], path[1:]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1) or sorted(known)
        raise ValueError(f'no option is called {whole!r}; did you mean {", ".join(near)}?')
    old = getattr(node, name)
    if rest:
        if not dataclasses.is_dataclass(old):
            raise ValueError(f'{whole!r}: {name} has no options of its own')
        new = _replace(old, rest, value, whole)
    elif dataclasses.is_dataclass(old):
        raise ValueError(f'{whole!r}: set one of its options: '
                         + ', '.join(f'{whole}.{f.name}' for f in dataclasses.fields(old)))
    else:
        new = _parse(value, old, typing.get_type_hints(type(node)).get(name), whole)
    return node.clone(**{name: new}) if isinstance(node, nn.Module) else dataclasses.replace(node, **{name: new})


def _parse(text: str, old: Any, hint: Any, whole: str) -> Any:
    """The value of an option that has been `old`, as annotated; one value makes a tuple of one."""
    value = _literal(text)
    for candidate in (value, (value,)) if text else ('', ()):
        with contextlib.suppress(TypeError):
            return _typed(candidate, hint)
    if typing.get_origin(hint) is Literal:
        raise ValueError(f'{whole}: found {text!r}, expected one of {", ".join(map(str, typing.get_args(hint)))}')
    kind = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint
    raise ValueError(f'{whole}: found {text!r}, expected a value like {old!r} ({kind})')


def _typed(value: Any, hint: Any) -> Any:
    """The value as a literal, number, text or tuple that fits the annotation; TypeError where it does not."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal and value in inner:
        return value
    if origin is tuple and isinstance(value, tuple):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            return tuple(map(_typed, value, kinds))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    raise TypeError


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(_literal(part) for part in text.split(',') if part) if ',' in text else text
    return _tuples(value)
