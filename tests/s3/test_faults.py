"""What S3 refuses ends in one sentence within 30 s: what, where and why, and no Ray is started for it."""

import pickle
import secrets
import socket
import time
from collections.abc import Iterator
from threading import Thread

import pytest
import ray

from snippets.fundamentals.dataset import list_images
from tests.s3.conftest import MANIFEST, Bucket, Refuse
from tests.s3_server import free_ports

LIMIT_S = 30


@pytest.fixture(autouse=True)
def within_limit(bucket: Bucket) -> Iterator[None]:
    """Make it a failure that a test takes longer than a reader is promised."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < LIMIT_S


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a start of Ray a failure."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", start)


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    connections = []

    def accept() -> None:
        try:
            while True:
                connections.append(server.accept()[0])
        except OSError:  # closed
            pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert connections
    for connection in connections:
        connection.close()


def test_a_wrong_secret_is_said_to_be_wrong(bucket: Bucket, refuse: Refuse) -> None:
    wrong = secrets.token_urlsafe(30)
    sentence = refuse(bucket.images, **bucket.server.environment | {"AWS_SECRET_ACCESS_KEY": wrong})
    assert sentence == (
        f"Cannot use {bucket.images} at {bucket.server.endpoint}: AWS_SECRET_ACCESS_KEY is not the secret of "
        "AWS_ACCESS_KEY_ID (SIGNATURE_DOES_NOT_MATCH)."
    )


def test_anonymous_reads_are_not_signed_whatever_key_there_is(bucket: Bucket, refuse: Refuse) -> None:
    variables = bucket.server.environment | {"AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30)}
    assert "SIGNATURE_DOES_NOT_MATCH" in refuse(bucket.anonymous.replace("anonymous@", ""), **variables)
    filesystem, images, _ = list_images(bucket.anonymous)  # with the same variables
    with pickle.loads(pickle.dumps(filesystem)).open_input_stream(images[0]) as stream:  # as Ray Data sends it
        assert stream.readall() == (bucket.local / images[0].removeprefix("public/images/")).read_bytes()


def test_an_unknown_key_is_said_to_be_unknown(bucket: Bucket, refuse: Refuse) -> None:
    unknown = secrets.token_hex(10).upper()
    sentence = refuse(bucket.images, **bucket.server.environment | {"AWS_ACCESS_KEY_ID": unknown})
    assert sentence == (
        f"Cannot use {bucket.images} at {bucket.server.endpoint}: the server does not know the key of "
        "AWS_ACCESS_KEY_ID (INVALID_ACCESS_KEY_ID)."
    )


@pytest.mark.parametrize("is_anonymous", [True, False])
def test_a_bucket_that_is_not_public_is_refused_to_who_has_no_key(
    bucket: Bucket, refuse: Refuse, is_anonymous: bool
) -> None:
    images = bucket.images.replace("s3://", "s3://anonymous@") if is_anonymous else bucket.images
    sentence = refuse(images, **bucket.server.anonymous_environment)
    assert sentence == (
        f"Cannot use {bucket.images} at {bucket.server.endpoint}: access is denied, as the key may not, or as "
        "there is no key and the bucket is not public (ACCESS_DENIED)."
    )


def test_a_missing_bucket_is_named(bucket: Bucket, refuse: Refuse) -> None:
    for images in ("s3://nobody/images", "s3://nobody", f"s3://nobody/{MANIFEST}"):
        sentence = refuse(images, **bucket.server.environment)
        where = f"{images} at {bucket.server.endpoint}"
        assert sentence == f"Cannot use {where}: there is no such bucket (NO_SUCH_BUCKET)."


@pytest.mark.parametrize("name", ["images/none.jpg", "images/none", "none.parquet"])
def test_a_missing_object_is_named(bucket: Bucket, refuse: Refuse, name: str) -> None:
    uri = f"s3://{bucket.name}/{name}"
    sentence = refuse(uri, **bucket.server.environment)
    assert sentence == f"There is no file or folder {uri} at {bucket.server.endpoint}."


def test_a_folder_without_images_is_named(bucket: Bucket, refuse: Refuse) -> None:
    bucket.filesystem.create_dir(f"{bucket.name}/empty")
    sentence = refuse("s3://own/empty", **bucket.server.environment)
    assert sentence == f"There is no image among the 0 files of s3://own/empty at {bucket.server.endpoint}."


def test_an_endpoint_that_refuses_connections_is_named(bucket: Bucket, refuse: Refuse) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    sentence = refuse(bucket.images, **bucket.server.environment | {"AWS_ENDPOINT_URL": endpoint})
    where = f"{bucket.images} at {endpoint}"
    assert sentence == f"Cannot use {where}: no answer, Could not connect to server (NETWORK_CONNECTION)."


def test_an_endpoint_that_never_answers_is_named(bucket: Bucket, refuse: Refuse, silent: str) -> None:
    sentence = refuse(bucket.images, **bucket.server.environment | {"AWS_ENDPOINT_URL": silent})
    where = f"{bucket.images} at {silent}"
    assert sentence == f"Cannot use {where}: no answer, Timeout was reached (NETWORK_CONNECTION)."


@pytest.mark.parametrize("endpoint", ["http://:x", "http://", "https://someone:word@:x"])
def test_an_endpoint_that_is_no_address_is_named(bucket: Bucket, refuse: Refuse, endpoint: str) -> None:
    sentence = refuse(bucket.images, **bucket.server.environment | {"AWS_ENDPOINT_URL": endpoint})
    where = f"{bucket.images} at {endpoint.replace('someone:word@', '')}"
    assert sentence == f"Cannot use {where}: AWS_ENDPOINT_URL is not the address of a server ([code 103])."


def test_amazons_metadata_service_that_never_answers_holds_nobody_up_for_long(
    bucket: Bucket, refuse: Refuse, silent: str
) -> None:
    variables = {**bucket.server.anonymous_environment, "AWS_EC2_METADATA_SERVICE_ENDPOINT": silent}
    del variables["AWS_EC2_METADATA_DISABLED"]
    assert "access is denied" in refuse(bucket.images, **variables)


def test_an_address_that_holds_credentials_is_refused_and_not_repeated(bucket: Bucket, refuse: Refuse) -> None:
    key, secret = bucket.server.access_key, bucket.server.secret_key
    for user in (f"{key}:{secret}@", f"{key}@", f"{key}:{secret[:9]}/{secret[9:]}@", f"anonymous:{secret}@"):
        sentence = refuse(f"s3://{user}own/images", **bucket.server.anonymous_environment)
        assert sentence == "An s3:// address is s3://bucket/key or s3://anonymous@bucket/key, without credentials."
