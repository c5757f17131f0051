"""Say in a sentence what S3 refused, where and why: pyarrow's own texts name neither server nor remedy."""

from __future__ import annotations

import os
import re

# By S3's code, or by what the server says where pyarrow knows no code.
REASONS = {
    "ACCESS_DENIED": "access is denied, as the key may not, or as there is no key and the bucket is not public",
    "INVALID_ACCESS_KEY_ID": "the server does not know the key of AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "AWS_SECRET_ACCESS_KEY is not the secret of AWS_ACCESS_KEY_ID",
    "NO_SUCH_BUCKET": "there is no such bucket",
    "[code 103]": "AWS_ENDPOINT_URL is not the address of a server",
    "MissingContentLength": "the server wants writers to set AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
}
REFUSAL = re.compile(
    r"When [\w ]+?(?:key '(?P<key>.*?)' in )?bucket '(?P<bucket>.*?)': "
    r"AWS Error (?P<code>.+?) during \w+ operation: (?P<says>.*)"
)
NETWORK = re.compile(r"curlCode: \d+, (?P<says>[^;]*)")


def endpoint() -> str:
    """Return the server that `s3://` URIs are read from, without a password."""
    return re.sub(r"//[^/]*@", "//", os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3")


def explain_refusal(text: str) -> str | None:
    """Return a sentence for an error text of pyarrow's S3 filesystem, or None for any other."""
    refusal = REFUSAL.search(text)
    if refusal is None:
        return None
    code, says = refusal["code"], re.sub(r" *\(Request ID: .*?\)", "", refusal["says"])
    reason = next((reason for sign, reason in REASONS.items() if sign in (code, *says.split())), says.rstrip(". "))
    if network := NETWORK.search(says):
        reason = f"no answer, {network['says']}"
    place = f"s3://{refusal['bucket']}/{refusal['key'] or ''}".rstrip("/")
    return f"Cannot use {place} at {endpoint()}: {reason} ({code})."


def name_endpoint(sentence: str) -> str:
    """Return a sentence that ends with an `s3://` URI with the server added to it."""
    return re.sub(r"(s3://\S+)\.$", lambda uri: f"{uri[1]} at {endpoint()}.", sentence)
