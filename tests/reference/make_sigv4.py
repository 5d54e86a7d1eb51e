"""Signatures of requests to S3, by botocore 1.44.8: tests/fixtures/sigv4.json.

    pip install botocore==1.44.8
    python tests/reference/make_sigv4.py

The server of tests/http/bucket.rs checks what a client signs; this holds the check against botocore's own.
"""

import datetime
import json
import pathlib

import botocore
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ACCESS, SECRET, REGION = "AKIDTEST", "secret/of+tests", "eu-test-1"

# The signature of a given second.
botocore.auth.get_current_datetime = lambda: datetime.datetime(2026, 11, 29, 12, 0, 0)
cases = []
for method, key, token, more in [
    ("GET", "soups/one/soup.toml", None, {}),
    ("HEAD", "soups/one/soup.toml", None, {}),
    ("GET", "soups/a=b+c,d@e~f/x.json", None, {"Range": "bytes=5-"}),
    ("GET", "soups/with space/ä.bin", "a/session+token=", {}),
]:
    url = f"http://127.0.0.1:9000/bucket/{botocore.utils.percent_encode(key, safe='/~')}"
    request = AWSRequest(method, url, headers={"host": "127.0.0.1:9000", **more})
    request.context["client_config"] = botocore.config.Config(s3={"payload_signing_enabled": True})
    S3SigV4Auth(Credentials(ACCESS, SECRET, token), "s3", REGION).add_auth(request)
    headers = {name.lower(): value for name, value in request.headers.items()}
    cases.append({"method": method, "path": url.split(":9000")[1], "headers": headers})

document = {"botocore": botocore.__version__, "secret": SECRET, "requests": cases}
out = pathlib.Path(__file__).parents[1] / "fixtures/sigv4.json"
out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
