"""Recipes, their overrides, and their form in JSON."""

import dataclasses
import json
import typing

import jax
import numpy as np
import pytest

from jmer import shipped, zoo
from jmer.data import synthetic
from jmer.data.load import TOYS, source
from jmer.data.splits import Protocol
from jmer.train import experiment as experiments
from jmer.train.experiment import Data, Experiment, Loss, Optimizer, data_from_json, override, to_json
from jmer.types import Batch, Stream

EXPERIMENT = Experiment(zoo.create('late', classes=3), Data('toy', ('text', 'audio')))


@pytest.mark.parametrize(
    ('setting', 'path', 'value'),
    [
        ('epochs=7', 'epochs', 7),
        ('monitor=accuracy', 'monitor', 'accuracy'),
        ('compute_dtype=bfloat16', 'compute_dtype', 'bfloat16'),
        ('optimizer.rate=3e-4', 'optimizer.rate', 3e-4),
        ('optimizer.rate=1', 'optimizer.rate', 1.0),
        ('optimizer.freeze=head/*', 'optimizer.freeze', ('head/*',)),
        ('optimizer.schedule=cosine', 'optimizer.schedule', 'cosine'),
        ('data.protocol.test=fold2', 'data.protocol.test', ('fold2',)),
        ('data.protocol.test=fold2,fold3', 'data.protocol.test', ('fold2', 'fold3')),
        ('data.protocol.test=', 'data.protocol.test', ()),
        ('data.streams=text', 'data.streams', ('text',)),
        ('data.pool=audio,10', 'data.pool', (('audio', 10),)),
        ("data.pool=('audio',10),('text',2)", 'data.pool', (('audio', 10), ('text', 2))),
        ('data.stand_ins=audio,text', 'data.stand_ins', (('audio', 'text'),)),
        ('loss.class_weights=1,2.5,3', 'loss.class_weights', (1.0, 2.5, 3.0)),
        ('loss.name=', 'loss.name', ''),
        ('loss.balance=0.99', 'loss.balance', 0.99),
        ('data.balance=1', 'data.balance', 1.0),
        ('model.hidden=[64, 32]', 'model.hidden', (64, 32)),
        ('model.hidden=64', 'model.hidden', (64,)),
        ('model.dropout=0', 'model.dropout', 0.0),
        ('model.probabilities=False', 'model.probabilities', False),
    ],
)
def test_an_option_takes_the_type_that_it_has(setting, path, value):
    changed = override(EXPERIMENT, [setting])
    *nodes, name = path.split('.')
    holder, before = changed, EXPERIMENT
    for node in nodes:
        holder, before = getattr(holder, node), getattr(before, node)
    found = getattr(holder, name)
    assert found == value and repr(found) == repr(value), 'equal, and of one type: 1 is no float'
    if nodes and nodes[0] != 'model':
        assert dataclasses.replace(holder, **{name: getattr(before, name)}) == before, 'and nothing else'
    assert hash(changed) is not None


def test_settings_add_up_and_the_last_one_wins():
    changed = override(EXPERIMENT, ['epochs=3', 'optimizer.rate=1', 'epochs=4', 'optimizer.clip=2'])
    assert (changed.epochs, changed.optimizer) == (4, Optimizer(rate=1.0, clip=2.0))
    assert EXPERIMENT.epochs == 50 and EXPERIMENT.optimizer == Optimizer()


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ('epochs', "'epochs': a setting has the form option=value"),
        ('epoch=3', "no option is called 'epoch'; did you mean epochs"),
        ('optimiser.rate=1', "no option is called 'optimiser.rate'; did you mean optimizer"),
        ('optimizer.lr=1', "no option is called 'optimizer.lr'; did you mean .*rate"),
        ('model.heads=3', "no option is called 'model.heads'"),
        ('model.name=x', "no option is called 'model.name'"),
        ('epochs.x=3', 'epochs has no options of its own'),
        ('optimizer=adam', 'set one of its options: optimizer.name, optimizer.rate'),
        ('model=gmu', 'set one of its options: model.classes'),
        ('epochs=3.5', r"epochs: found '3.5', expected a value like 50 \(int\)"),
        ('epochs=True', "epochs: found 'True'"),
        ('epochs=', "epochs: found ''"),
        ('optimizer.rate=fast', r"optimizer.rate: found 'fast', expected a value like 0.001 \(float\)"),
        ('optimizer.name=lion', "optimizer.name: found 'lion', expected one of adam, adamw, sgd"),
        ('compute_dtype=float16', "found 'float16', expected one of float32, bfloat16"),
        ('monitor=3', "monitor: found '3', expected a value like 'uar'"),
        (
            'data.protocol.test=3',
            r"data.protocol.test: found '3', expected a value like \('test',\) \(tuple\[str",
        ),
        ('data.pool=audio', r"data.pool: found 'audio', .*tuple\[tuple\[str, int\]"),
        ('data.pool=audio,x', "data.pool: found 'audio,x'"),
        ('loss.class_weights=1,two', "loss.class_weights: found '1,two'"),
        ('model.hidden=64,wide', "model.hidden: found '64,wide'"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(setting, message):
    with pytest.raises(ValueError, match=message):
        override(EXPERIMENT, [setting])


def test_json_holds_all_of_an_experiment():
    changed = override(
        EXPERIMENT, ['data.pool=audio,10', 'data.protocol.test=fold1', 'loss.class_weights=1,2,3']
    )
    plain = json.loads(json.dumps(to_json(changed)))
    assert set(plain) == {field.name for field in dataclasses.fields(Experiment)}
    assert data_from_json(plain['data']) == changed.data
    assert zoo.build(plain['model']) == changed.model
    assert (
        Optimizer(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain['optimizer'].items()})
        == Optimizer()
    )
    assert set(plain['loss']) == {field.name for field in dataclasses.fields(Loss)}
    old = {key: value for key, value in plain['data'].items() if key != 'stand_ins'}
    assert data_from_json(old) == changed.data, 'a card from before an option was there'


RECIPES = [name + function for name in shipped.names('experiments', '.py')
           for function in ('', ':paper')
           if not function or 'def paper()' in shipped.find('experiments', name, '.py').read_text()]


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_shipped_can_be_read_and_overridden(name):
    """Its options have to be of the types that the command line can set."""
    recipe = experiments.load(name)
    corpus, model = recipe.data.name.split('-')[0], zoo.name_of(recipe.model)
    assert name.startswith(f'{corpus}/{model}')
    json.dumps(to_json(recipe))
    for field, hint in typing.get_type_hints(type(recipe.model)).items():
        value = getattr(recipe.model, field, None)
        if field not in ('parent', 'name', 'scope') and isinstance(value, int | float | str | tuple):
            text = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert override(recipe, [f'model.{field}={text}']) == recipe, (field, hint)


TRACED = [pytest.param(name, marks=pytest.mark.slow if ':' in name else ()) for name in RECIPES]


@pytest.mark.parametrize('name', TRACED)
def test_every_recipe_shipped_fits_its_corpus(name):
    """Its model reads the corpus's streams, and scores as many classes as the target has."""
    recipe = experiments.load(name)
    data = recipe.data
    toy = TOYS.get(data.name)
    spec = synthetic.corpus(layout=toy, dialogues=(1, 0, 0)).spec if toy else source(data.name).SPEC
    dialogues = spec.layout == 'dialogue' and not data.turns
    assert dialogues == (zoo.family(zoo.name_of(recipe.model)) == 'dialogue')
    steps = (2, 4) if dialogues else (2, 50)
    present = np.ones(steps if dialogues else 2, bool)
    batch = Batch({stream: Stream(np.zeros((*steps, spec.stream(stream).width), np.float32), np.ones(steps, bool))
                   for stream in data.streams}, present, {}, np.zeros(steps, np.int32) if dialogues else None)
    target = spec.target(data.target)
    out, _ = jax.eval_shape(lambda: recipe.model.init_with_output(jax.random.key(0), batch, train=False))
    assert out.logits.shape == (*present.shape, len(target.names))
    assert not recipe.loss.class_weights or len(recipe.loss.class_weights) == len(target.names)


def test_a_recipe_is_named_by_its_place_or_its_path(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from jmer.train import experiment\n\ndef get():\n    return experiment.load("toy/gmu")\n\n'
        'def paper():\n    return experiment.load("toy/mult")\n'
    )
    assert experiments.load(str(path)) == experiments.load('toy/gmu') == experiments.load('toy/gmu.py')
    assert experiments.load(f'{path}:paper') == experiments.load('toy/mult')
    with pytest.raises(ValueError, match=r'gmu.py: a recipe has a function paper\(\)'):
        experiments.load('toy/gmu:paper')
    with pytest.raises(FileNotFoundError, match=r'toy/gnu: no such file.*toy/gmu'):
        experiments.load('toy/gnu')
    for text in ('', 'def get():\n    return 3\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r'mine.py: a recipe has a function get\(\)'):
            experiments.load(str(path))


def test_a_protocol_is_part_of_the_identity():
    one = to_json(EXPERIMENT)
    other = to_json(override(EXPERIMENT, ['data.protocol.seed=1']))
    assert one != other and one['data']['protocol'] == dataclasses.asdict(Protocol())
