"""A real S3 server on this machine, Ceph's gateway over a store in memory, which leaves nothing behind."""

import hashlib
import hmac
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

REGION = "us-east-1"
START_S = 60.0
# One monitor, one store and one gateway, without copies of anything and without waiting for a second monitor.
CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{monitor_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
mon_initial_members = a
mon_data = {folder}/mon
mon_allow_pool_size_one = true
mon_data_avail_crit = 0
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
osd_data = {folder}/osd
osd_objectstore = memstore
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port}
keyring = {folder}/keyring
run_dir = {folder}
admin_socket =
pid_file =
log_to_file = false
"""
KEYS = {  # of Ceph's own parts, which know one another by them
    "mon.": ("--cap", "mon", "allow *"),
    "client.admin": ("--cap", "mon", "allow *", "--cap", "osd", "allow *"),
    "osd.0": ("--cap", "mon", "allow profile osd", "--cap", "osd", "allow *"),
}
PUBLIC_ACTIONS = ["s3:GetObject", "s3:ListBucket"]


class S3Error(RuntimeError):
    """A sentence on why there is no S3 server."""


class S3Server:
    """A Ceph monitor, a store in memory and the S3 gateway, on ports of loopback that were free.

    The gateway makes the key pair, at random and for this run alone. A client finds all of it in `environment`.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="s3-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        port, monitor_port = free_ports(2)
        self.endpoint = f"http://127.0.0.1:{port}"
        try:
            self._start(port, monitor_port)
        except BaseException:
            self.close()
            raise

    def _start(self, port: int, monitor_port: int) -> None:
        fsid, disk = str(uuid.uuid4()), str(uuid.uuid4())
        values = {"fsid": fsid, "folder": self._folder, "port": port, "monitor_port": monitor_port}
        (self._folder / "ceph.conf").write_text(CONFIGURATION.format_map(values))
        for part in ("mon", "osd", "rgw"):
            (self._folder / part).mkdir()
        keyring, map_of_monitors = str(self._folder / "keyring"), str(self._folder / "monmap")
        self._run("ceph-authtool", "--create-keyring", keyring)
        for name, capabilities in KEYS.items():
            self._run("ceph-authtool", keyring, "--gen-key", "--name", name, *capabilities)
        monitor = ("--addv", "a", f"[v2:127.0.0.1:{monitor_port}]")
        self._run("monmaptool", "--create", "--fsid", fsid, *monitor, map_of_monitors)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_of_monitors)
        self._serve("ceph-mon", "-i", "a")
        self._run("ceph", "osd", "new", disk)  # waits for the monitor
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", disk)
        self._serve("ceph-osd", "-i", "0")
        # Waits for the store.
        user = json.loads(self._run("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests"))
        self.access_key: str = user["keys"][0]["access_key"]
        self.secret_key: str = user["keys"][0]["secret_key"]
        self._serve("radosgw", "-n", "client.admin")
        self._wait_until_it_answers()

    def _command(self, program: str, *arguments: str) -> list[str]:
        path = shutil.which(program)
        if path is None:
            raise S3Error(f"There is no {program} on this machine: run scripts/install-s3.")
        return [path, "--conf", str(self._folder / "ceph.conf"), *arguments]

    def _run(self, program: str, *arguments: str) -> bytes:
        command = self._command(program, *arguments)
        try:
            return subprocess.run(command, capture_output=True, check=True, timeout=START_S).stdout
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise S3Error(f"{error}\n{(error.stderr or b'').decode()}\n{self._log()}") from None

    def _serve(self, program: str, *arguments: str) -> None:
        command = self._command(program, "-f", *arguments)
        with (self._folder / f"{program}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            for process in self._processes:
                if process.poll() is not None:
                    raise S3Error(f"{process.args!r} ended.\n{self._log()}")
            try:
                urllib.request.urlopen(self.endpoint, timeout=5).close()
                return
            except urllib.error.URLError:
                if time.monotonic() > deadline:
                    raise S3Error(f"No S3 server at {self.endpoint} in {START_S:g} s.\n{self._log()}") from None
                time.sleep(0.05)

    def _log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*.log")))

    def make_bucket(self, name: str, is_public: bool = False) -> None:
        """Make a bucket, which anybody may list and read if it is public, and nobody else if it is not."""
        self._put(f"/{name}", "", b"")
        if is_public:
            everyone = {"Effect": "Allow", "Principal": "*", "Action": PUBLIC_ACTIONS}
            statement = {**everyone, "Resource": [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]}
            policy = {"Version": "2012-10-17", "Statement": [statement]}
            self._put(f"/{name}", "policy=", json.dumps(policy).encode())

    def _put(self, path: str, query: str, body: bytes) -> None:
        """Send a signed request, which pyarrow cannot: it knows objects, and no policies.

        The signature is version 4 of AWS's: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
        """
        now, digest = datetime.now(UTC), hashlib.sha256(body).hexdigest()
        headers = {
            "host": self.endpoint.removeprefix("http://"),
            "x-amz-content-sha256": digest,
            "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}",
        }
        lines, names = "".join(f"{name}:{value}\n" for name, value in headers.items()), ";".join(headers)
        request = "\n".join(("PUT", path, query, lines, names, digest))
        scope = (f"{now:%Y%m%d}", REGION, "s3", "aws4_request")
        key = f"AWS4{self.secret_key}".encode()
        for part in scope:
            key = hmac.digest(key, part.encode(), "sha256")
        text = (
            "AWS4-HMAC-SHA256",
            headers["x-amz-date"],
            "/".join(scope),
            hashlib.sha256(request.encode()).hexdigest(),
        )
        signature = hmac.digest(key, "\n".join(text).encode(), "sha256").hex()
        credential = f"{self.access_key}/{'/'.join(scope)}"
        headers["Authorization"] = (
            f"{text[0]} Credential={credential}, SignedHeaders={names}, Signature={signature}"
        )
        url = f"{self.endpoint}{path}?{query}"
        urllib.request.urlopen(urllib.request.Request(url, body, headers, method="PUT"), timeout=30).close()

    def close(self) -> None:
        """Stop every process and remove the files; closing twice does no harm."""
        for process in reversed(self._processes):  # nothing they hold outlives them, so none of them is asked
            process.kill()
            process.wait()
        self._processes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def anonymous_environment(self) -> dict[str, str]:
        """The variables of a client without a key."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a client that reads and writes with the key."""
        return {
            **self.anonymous_environment,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
