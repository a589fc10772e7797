"""A copy of the shipped small model for each test, and a folder of crops."""

import copy
import os
import shutil
from contextlib import contextmanager

import pytest


@pytest.fixture
def model(shipped):
    """A fresh copy of the shipped model with two prompts a block."""
    return copy.deepcopy(shipped[0])


@pytest.fixture
def folder(split, tmp_path):
    """A copy of the split's 24 images, in its folders."""
    target = tmp_path / "crops"
    for record in split.records:
        place = target / record.path.parent.name / record.path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.path, place)
    return target


@pytest.fixture
def locked_folder(monkeypatch):
    """Makes a folder one that cannot be read, for root too."""
    real = os.scandir

    def lock(folder):
        def scandir(path="."):
            if os.fspath(path) == str(folder):
                raise PermissionError(13, "Permission denied", str(folder))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)

    return lock


@pytest.fixture
def interrupted(monkeypatch):
    """A block in which a module's encoding is ended by an exception of this kind after two batches."""

    @contextmanager
    def ending(module, kind):
        real = module.encode_images

        def encode(*given, **options):
            for count, batch in enumerate(real(*given, **options)):
                if count == 2:
                    raise kind
                yield batch

        with monkeypatch.context() as patch:
            patch.setattr(module, "encode_images", encode)
            with pytest.raises(kind):
                yield

    return ending
