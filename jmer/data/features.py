"""A user's own files as items: what a model is asked about that stands in no corpus."""

import os
from pathlib import Path

import numpy as np

from jmer.data import audio, folder
from jmer.data.corpus import Corpus, Item, Spec, StreamSpec, validate


def clip(spec: Spec, *paths: str | os.PathLike) -> Item:
    """One item, without labels, from one file or from several that hold different streams of it.

    A sound file (wav, flac, ...) gives the streams of a spec that are our log-mel ('audio') or its cepstra
    ('mfcc'). An npz file holds arrays called like the streams of the spec: [t d], or [d] for a single
    step; in dialogues [u d] or [u t d]. `<stream>_mask`, bool [t] (or [u], [u t]), says which steps are
    present, and in dialogues `speakers`, int [u], who speaks each turn (one speaker if it is left out). A
    stream that no file holds is missing from the item, which every model accepts.

    Raises FileNotFoundError, or ValueError naming the file, the array, found and expected.
    """
    if not paths:
        raise ValueError('a clip needs at least one file')
    place: dict[str, Path] = {}
    found: dict[str, np.ndarray] = {}
    for path in map(Path, paths):
        for name, value in _read(spec, path).items():
            if name in found:
                raise ValueError(f'{path}: array {name}: also in {place[name]}')
            place[name], found[name] = path, value
    masks = {stream.name: _mask(f'{place[name]}: array {name}', found[name])
             for stream in spec.streams if (name := f'{stream.name}_mask') in found}
    streams = {stream.name: _stream(f'{place[stream.name]}: array {stream.name}', stream,
                                    found[stream.name], masks.get(stream.name))
               for stream in spec.streams if stream.name in found}
    if not streams:
        raise ValueError(f'{", ".join(map(str, paths))}: none of the streams of {spec.name} '
                         f'({", ".join(stream.name for stream in spec.streams)})')
    for name in masks:
        if name not in streams:
            raise ValueError(f'{place[f"{name}_mask"]}: array {name}_mask: there is no array {name}')
    speakers: np.ndarray | None = None
    turns: tuple[str, ...] = ()
    if spec.layout == 'dialogue':
        count = len(next(iter(streams.values())))
        speakers = _speakers(f'{place.get("speakers")}: array speakers', found.get('speakers'), count)
        turns = tuple(str(turn) for turn in range(count))
    item = Item(id=str(paths[0]), group=str(paths[0]), part='', streams=streams, labels={},
                masks=masks, speakers=speakers, turns=turns)
    validate(Corpus(spec, (item,)))
    return item


def _read(spec: Spec, path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file')
    if path.suffix.lower() != '.npz':
        return _sound(spec, path)
    found = folder.arrays(path)
    known = [name for stream in spec.streams for name in (stream.name, f'{stream.name}_mask')]
    known += ['speakers'] if spec.layout == 'dialogue' else []
    for name in found:
        if name not in known:
            raise ValueError(f'{path}: array {name}: not known to {spec.name}, '
                             f'expected some of {", ".join(known)}')
    return found


def _sound(spec: Spec, path: Path) -> dict[str, np.ndarray]:
    ours = [stream.name for stream in spec.streams
            if (audio.WIDTHS.get(stream.name), audio.FRAME_RATE) == (stream.width, stream.rate)]
    if spec.layout == 'dialogue' or not ours:
        raise ValueError(f'{path}: {spec.name} takes no sound files, since its audio is not our log-mel '
                         f'of single clips; expected an npz file of streams')
    found = audio.streams(audio.read(path))
    return {name: found[name] for name in ours}


def _stream(place: str, stream: StreamSpec, x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if x.dtype.kind not in 'fiu':
        raise ValueError(f'{place}: found {x.dtype}, expected numbers')
    x = x[None] if x.ndim == 1 else x
    if x.ndim < 2 or x.shape[-1] != stream.width or not x.size:
        raise ValueError(f'{place}: found shape {x.shape}, expected at least one step, '
                         f'each {stream.width} wide')
    if mask is not None and mask.shape == x.shape[:-1]:
        x = np.where(mask[..., None], x, 0)   # what stands there is no number to object to
    if not np.isfinite(x).all():
        raise ValueError(f'{place}: found NaN or infinity at {np.argwhere(~np.isfinite(x))[0].tolist()}, '
                         f'expected finite numbers')
    return x.astype(np.float32)


def _mask(place: str, mask: np.ndarray) -> np.ndarray:
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f'{place}: found other values than 0 and 1')
    return mask.astype(bool)


def _speakers(place: str, speakers: np.ndarray | None, turns: int) -> np.ndarray:
    """Speakers by order of appearance, as everywhere in jmer."""
    if speakers is None:
        return np.zeros(turns, np.int32)
    if speakers.shape != (turns,) or speakers.dtype.kind not in 'iu':
        raise ValueError(f'{place}: found {speakers.dtype} {speakers.shape}, expected one whole number '
                         f'for each of {turns} turns')
    order = list(dict.fromkeys(speakers.tolist()))
    return np.array([order.index(speaker) for speaker in speakers.tolist()], np.int32)
