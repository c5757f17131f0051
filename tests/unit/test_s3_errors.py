"""pyarrow's texts about S3 become sentences that name address, server and reason."""

import pytest

from snippets.s3_errors import explain_refusal, name_endpoint

HEAD = "When reading information for key 'a/1.jpg' in bucket 'own': AWS Error"


@pytest.fixture(autouse=True)
def endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://someone:word@s3.example.org")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "SLOW_DOWN during HeadObject operation: Reduce your rate. (Request ID: 7)",
            "Reduce your rate (SLOW_DOWN)",
        ),
        (
            "NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout was reached; Details: slow",
            "no answer, Timeout was reached (NETWORK_CONNECTION)",
        ),
        (
            "UNKNOWN (HTTP status 411) during UploadPart operation: Unable to parse ExceptionName: "
            "MissingContentLength Message:  (Request ID: 7)",
            "the server wants writers to set AWS_REQUEST_CHECKSUM_CALCULATION=when_required "
            "(UNKNOWN (HTTP status 411))",
        ),
    ],
)
def test_a_refusal_is_a_sentence(text: str, reason: str) -> None:
    where = "s3://own/a/1.jpg at https://s3.example.org"
    assert explain_refusal(f"OSError: {HEAD} {text}") == f"Cannot use {where}: {reason}."


def test_a_bucket_alone_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    text = "When getting information for bucket 'own': AWS Error NO_SUCH_BUCKET during HeadBucket operation: none"
    assert explain_refusal(text) == "Cannot use s3://own at Amazon S3: there is no such bucket (NO_SUCH_BUCKET)."


def test_other_texts_are_left_alone() -> None:
    assert explain_refusal("There is no file or folder /x.") is None
    assert name_endpoint("There is no file or folder /x.") == "There is no file or folder /x."
    named = "There is no file or folder s3://own/x at https://s3.example.org."
    assert name_endpoint("There is no file or folder s3://own/x.") == named
