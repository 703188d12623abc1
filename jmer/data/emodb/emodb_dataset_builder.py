"""TFDS builder of jmer.data.emodb; what is read, and how, stands in its `source`."""

import tensorflow_datasets as tfds

from jmer.data.builder import CorpusBuilder
from jmer.data.emodb import source


class Builder(CorpusBuilder):
    """One split for each part of `source`, over the folder given as `manual_dir`."""

    source = source
    VERSION = tfds.core.Version(source.SPEC.version)
    MANUAL_DOWNLOAD_INSTRUCTIONS = source.TREE
