"""Corpora by name: prepared once by TFDS, kept in a cache, read back into memory.

The cache is $JMER_CACHE, or ~/.cache/jmer. A prepared copy is filed under a fingerprint of the
builder and of the listing of the source folder, so that another folder or a changed file is never
served from an old copy. It is written beside its place and renamed, so that a copy is either whole
or not there, whoever is killed and however many processes prepare at once. Copies can be deleted at
any time.

TensorFlow is imported when a corpus is read, not with this module.
"""

import contextlib
import hashlib
import importlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
from rich.console import Console

from jmer.data import folder
from jmer.data.corpus import Corpus, Spec, validate

TOYS: dict[str, Literal['utterance', 'dialogue']] = {'toy': 'utterance', 'toy-dialogue': 'dialogue'}


def names() -> list[str]:
    """The corpora that `load` knows: the toys, and every folder here that holds a builder."""
    found = Path(__file__).parent.glob('*/*_dataset_builder.py')
    return [*TOYS, *sorted(path.parent.name for path in found)]


def source(name: str) -> ModuleType:
    """The module that reads a corpus from its owners' files; it does not import TensorFlow."""
    if name not in names() or name in TOYS:
        raise ValueError(f'no corpus is called {name!r}; known: {", ".join(names())}')
    return importlib.import_module(f'jmer.data.{name}.source')


def load(
    name: str, data_dir: str | os.PathLike | None = None, streams: Sequence[str] | None = None
) -> Corpus:
    """A corpus in memory, validated, its items sorted by id.

    name: see `names`. data_dir: the folder that its owners' files are in; the toys need none.
    streams: those to keep, all if None.

    Raises ValueError for an unknown corpus or stream, a file that is not as expected (naming file,
    place, found, expected), or if no item has any of the streams; FileNotFoundError, showing the
    tree that was expected, if the folder does not hold the corpus. Warns of a stream asked for that
    no item has.
    """
    if name in TOYS:
        from jmer.data import synthetic
        corpus = synthetic.corpus(layout=TOYS[name])
    else:
        corpus = _read(source(name), data_dir)
    validate(corpus)
    return corpus if streams is None else select(corpus, streams)


def select(corpus: Corpus, streams: Sequence[str]) -> Corpus:
    """A corpus with some of its streams. Errors and warnings as `load`."""
    spec, items = corpus
    held = {name for item in items for name in item.streams}
    narrow = Spec(**(vars(spec) | {'streams': tuple(spec.stream(name) for name in streams)}))
    absent = [name for name in streams if name not in held]
    if absent:
        complaint = f'{spec.name}: no item has the stream {", ".join(absent)}'
        if len(absent) == len(streams):
            raise ValueError(f'{complaint}; found: {", ".join(sorted(held)) or "none"}')
        warnings.warn(f'{complaint}; it counts as missing', stacklevel=3)
    return Corpus(narrow, tuple(
        item._replace(streams=_some(item.streams, streams), masks=_some(item.masks, streams))
        for item in items))


def _some(found: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: found[name] for name in names if name in found}


def _read(module: ModuleType, data_dir: str | os.PathLike | None) -> Corpus:
    name = module.SPEC.name
    if data_dir is None:
        raise ValueError(f'{name} is read from a folder, and none was given: {module.TREE}')
    root = Path(data_dir).expanduser().resolve()
    folder.present(root, module.TREE)
    key = f'{module.SPEC.version}-{fingerprint(module, root)}'
    builder = _prepared(name, root, cache() / name / key)
    return Corpus(module.SPEC, tuple(sorted(builder.items(), key=lambda item: item.id)))


def cache() -> Path:
    """Where prepared copies are kept."""
    return Path(os.environ.get('JMER_CACHE') or '~/.cache/jmer').expanduser()


def fingerprint(module: ModuleType, root: Path) -> str:
    """16 hex digits that change with the corpus, its version, the folder, and any file in it.

    A file is known by path, size, and the times of its last change; the second of them (ctime)
    cannot be set back, so that neither copying with times kept nor `touch` hides a change.
    """
    digest = hashlib.sha256(repr((module.SPEC.name, module.SPEC.version, str(root))).encode())
    for path in folder.files(root):
        stat = path.stat()
        entry = (str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        digest.update(repr(entry).encode())
    return digest.hexdigest()[:16]


def _prepared(name: str, root: Path, copy: Path):
    """The builder over a prepared copy, which is made if it is not there."""
    _quiet_tensorflow()
    builder = importlib.import_module(f'jmer.data.{name}.{name}_dataset_builder').Builder
    if not copy.is_dir():
        copy.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f'{copy.name}.draft-', dir=copy.parent))
        try:
            message = f'Preparing {name} from {root} (once; kept in {copy})'
            with Console(stderr=True).status(message):
                _prepare(builder, root, draft)
            _publish(draft, copy)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return builder(data_dir=copy, file_format='tfrecord')


def _prepare(builder, root: Path, draft: Path) -> None:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir=root, try_download_gcs=False)
    downloads = draft / 'downloads'   # TFDS wants one; nothing is ever downloaded
    with contextlib.redirect_stdout(io.StringIO()):   # it announces a download
        builder(data_dir=draft, file_format='tfrecord').download_and_prepare(
            download_dir=downloads, download_config=config)
    shutil.rmtree(downloads, ignore_errors=True)


def _publish(draft: Path, copy: Path) -> None:
    """Gives a finished draft its name; if another process was faster, its copy is as good."""
    try:
        draft.rename(copy)
    except OSError:
        if not copy.is_dir():
            raise


def _quiet_tensorflow() -> None:
    """Imports TensorFlow without its chatter and keeps it off the accelerators: they are JAX's."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')   # it logs that it is on, in vain here
    import tensorflow as tf
    import tensorflow_datasets as tfds

    with contextlib.suppress(RuntimeError):   # the caller has started TensorFlow: it is theirs
        tf.config.set_visible_devices([], 'GPU')
    tfds.disable_progress_bar()
    logging.getLogger('absl').setLevel(logging.ERROR)
