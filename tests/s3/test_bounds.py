"""The bounds of listing and reading are measured on S3 with the same code as on a disk."""

import pickle

import pytest

from snippets.fundamentals.dataset import list_images
from snippets.optimization import bounds
from snippets.samples import Samples
from tests.s3.conftest import Bucket


def test_objects_are_listed_and_read_whole_by_a_process_of_its_own(
    bucket: Bucket, sample_set: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.server.environment.items():
        monkeypatch.setenv(name, value)
    filesystem, paths, _ = list_images(bucket.images)
    assert len(paths) == 64
    sent, paths = pickle.loads(pickle.dumps((filesystem, paths[:3])))  # as Ray sends them to the process
    assert bounds.Hand(str(sample_set.model)).read(sent, paths) > 0
    sizes = [(bucket.local / path.removeprefix("own/images/")).stat().st_size for path in paths]
    assert [len(sent.open_input_stream(path).readall()) for path in paths] == sizes
