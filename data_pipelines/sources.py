"""The names of shards to tar files here: of folders, globs, brace ranges, URLs and commands."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import braceexpand

from data_pipelines.fetch import matching_urls
from data_pipelines.shard_cache import cached_path, url_of
from vlp.errors import UserError

Source = str | Path | Sequence[str | Path]


def find_shards(source: Source) -> list[Path]:
    """Return the tar files that a source names, sorted by name; those of URLs are in the cache.

    A source is a folder, a tar file, a glob, a brace range such as ``{000..009}.tar``, a URL
    (``https``, ``s3``, ``gs``, ``hf``) with or without a range, ``pipe:COMMAND``, or several.

    Raises:
        UserError: There is none, or one that was named is missing.
    """
    if isinstance(source, list | tuple):
        return [shard for part in source for shard in find_shards(part)]
    text = str(source)
    if not text.strip():
        raise UserError("The name of the shards is empty. Give a folder of tar files, or one.")
    if os.path.isdir(text):
        return _in_folder(text)
    if os.path.isfile(text):  # whatever braces and brackets are in its name
        return [Path(text)]
    try:
        # A command keeps its backslashes.
        names = list(braceexpand.braceexpand(text, escape=not text.startswith("pipe:")))
    except ValueError:
        raise UserError(
            f"Cannot read {text}: a brace has no partner. Write {{000..009}}.tar."
        ) from None
    if text.startswith("pipe:") and not text.removeprefix("pipe:").strip():
        raise UserError('The command is empty. Write "pipe:COMMAND", which prints a tar.')
    if is_remote(text):
        return [cached_path(url) for name in names for url in matching_urls(name)]
    found = []
    for name in names:
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if not files:
            raise UserError(f"There are no shards at {name}. Give a folder of tar files, or one.")
        found += files
    return found


def relative_names(shards: Sequence[Path]) -> list[str]:
    """Return the path of each shard below the folder of all of them: as told wherever they are.

    Beside files of this machine, those of URLs are named by their URLs.
    """
    paths = [os.path.abspath(shard) for shard in shards]
    urls = [url_of(shard) for shard in shards]
    if None not in urls:
        urls = [None] * len(urls)
    local = {os.path.dirname(p) for p, url in zip(paths, urls, strict=True) if url is None}
    root = len(os.path.commonpath(local))
    return [url or path[root:].lstrip(os.sep) for path, url in zip(paths, urls, strict=True)]


def is_remote(name: str) -> bool:
    """Return whether a name is a URL or a command and no path."""
    return name.startswith("pipe:") or "://" in name


def _in_folder(folder: str) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        # A hidden name is a folder that a command has not finished, or another system's litter.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        tars = (name for name in files if name.endswith(".tar") and not name.startswith("."))
        found += [os.path.join(place, name) for name in tars]
    if not found and os.path.isfile(os.path.join(folder, "keep.parquet")):
        raise UserError(
            f"{folder} holds a keep-list and no shards. Write --data.keep {folder} beside the "
            f"--data.shards that it was made of."
        )
    if not found:
        raise UserError(
            f"{folder} holds no tar files. Give a folder with 000000.tar, "
            f"such as `vlp pack` or `vlp filter` writes."
        )
    return [Path(path) for path in sorted(found)]
