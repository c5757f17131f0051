"""A Prometheus on loopback for the tests, which scrapes a Ray cluster and evaluates the rules of deploy/."""

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

import yaml  # type: ignore[import-untyped]

from tests.page_rendering import ROOT
from tests.s3_server import free_ports

DEPLOY = ROOT / "deploy" / "prometheus"
UNPACKED = ROOT / ".cache" / "prometheus"
START_S = 30


def program(name: str) -> str:
    """Return where a program of Prometheus is; raise `FileNotFoundError` with what brings it."""
    found = shutil.which(name) or shutil.which(name, path=str(UNPACKED))
    if found is None:
        raise FileNotFoundError(f"There is no {name} on this machine: run scripts/install-prometheus.")
    return found


def hasten(text: str) -> str:
    """Return rules that look back and wait for seconds: a test has no ten minutes.

    What Ray Data says of a run it says every five seconds, so that is looked back at for longer.
    """
    text = text.replace("[5m]", "[10s]").replace("[2m]", "[15s]")
    return re.sub(r"for: \d+m", "for: 8s", text)


class PrometheusServer:
    """Prometheus with the configuration of deploy/, which scrapes every two seconds, with the rules hastened."""

    def __init__(self, discovery: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="prometheus-"))
        self._process: subprocess.Popen[bytes] | None = None
        (port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{port}"
        try:
            self._start(port, discovery)
        except BaseException:
            self.close()
            raise

    def _start(self, port: int, discovery: Path) -> None:
        configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
        configuration["global"] = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
        (scraped,) = configuration["scrape_configs"]
        scraped["file_sd_configs"] = [{"files": [str(discovery)], "refresh_interval": "1s"}]
        for name in configuration["rule_files"]:
            (self._folder / name).write_text(hasten((DEPLOY / name).read_text("utf-8")))
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        options = {
            "config.file": self._folder / "prometheus.yml",
            "storage.tsdb.path": self._folder / "data",
            "web.listen-address": f"127.0.0.1:{port}",
        }
        command = [program("prometheus"), *(f"--{name}={value}" for name, value in options.items())]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / "log").read_text())
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/-/ready", timeout=5).close()
            return True
        except urllib.error.URLError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data that the API answers with."""
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series that an expression gives now."""
        found = self.ask("query", query=expression)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def alerts(self) -> set[tuple[str, str]]:
        """Return the alerts that fire now, each with its run, its dataset, or nothing."""
        firing = self.query('ALERTS{alertstate="firing"}')
        return {(labels["alertname"], labels.get("run", labels.get("dataset", ""))) for labels, _ in firing}

    def close(self) -> None:
        """Stop it and remove its files; closing twice does no harm."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
