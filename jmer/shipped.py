"""Where recipes and published weights lie: beside the package in a checkout, inside it when installed."""

from pathlib import Path


def root(kind: str) -> Path:
    """The folder of 'experiments' or 'checkpoints'."""
    package = Path(__file__).parent
    installed = package / '_shipped' / kind
    return installed if installed.is_dir() else package.parent / kind


def names(kind: str, suffix: str = '') -> list[str]:
    """What is shipped: recipes as '<dataset>/<model>' (suffix '.py'), weights as '<model>/<dataset>'."""
    pattern = f'*/*{suffix}' if suffix else '*/*/card.json'
    return sorted(str((p if suffix else p.parent).relative_to(root(kind)).with_suffix(''))
                  for p in root(kind).glob(pattern))


def find(kind: str, name: str, suffix: str = '') -> Path:
    """The file or folder that a user names: a path of their own, or a name of those shipped.

    Raises FileNotFoundError that lists what is shipped.
    """
    for path in (Path(name), root(kind) / f'{name.removesuffix(suffix) if suffix else name}{suffix}',
                 root(kind).parent / name):
        if path.is_file() if suffix else path.is_dir():
            return path
    raise FileNotFoundError(f'{name}: no such {"file" if suffix else "folder"}, and none of the {kind} '
                            f'shipped with jmer ({", ".join(names(kind, suffix)) or "none"})')
