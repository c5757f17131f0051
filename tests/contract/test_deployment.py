"""The files in deploy/ are what Kubernetes, Ray's launcher, a shell and Anyscale take, and all run one command.

Nothing of it runs on such a cluster here: their own schemas and parsers read the files, and stand-ins for Slurm's
commands run the script. Each check meets planted faults.
"""

import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import ray
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli, start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

from snippets.optimization.production import build_parser
from tests.page_rendering import ROOT

DEPLOY = ROOT / "deploy"
FILES = ("Dockerfile", "anyscale.yaml", "aws.yaml", "rayjob.yaml", "slurm.sh")
PAGE = ROOT / "docs" / "architecture" / "deployment.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PYTHON_AND_MODULE = ["python", "-m", "snippets.optimization.production"]

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "integer", "minimum": 1}
SWITCH: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "object"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(*required: str, **fields: Schema) -> Schema:
    """Return the schema of a mapping with these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def items(schema: Schema) -> Schema:
    """Return the schema of a list that has at least one."""
    return {"type": "array", "items": schema, "minItems": 1}


# The fields of KubeRay's types, but for the pods, which Kubernetes' own schemas check:
# https://github.com/ray-project/kuberay/tree/master/ray-operator/apis/ray/v1
RAYJOB = closed(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
    spec=closed(
        *("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        jobId=TEXT,
        metadata=TEXTS,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterConfig=closed(backoffLimit=COUNT),
        submitterPodTemplate=ANYTHING,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=TEXT,
        backoffLimit=COUNT,
        activeDeadlineSeconds=SECONDS,
        shutdownAfterJobFinishes=SWITCH,
        ttlSecondsAfterFinished=COUNT,
        suspend=SWITCH,
        clusterSelector=TEXTS,
        rayClusterSpec=closed(
            *("rayVersion", "headGroupSpec"),
            rayVersion=TEXT,
            authOptions=closed(mode={"enum": ["disabled", "token"]}, secretName=TEXT, enableK8sTokenAuth=SWITCH),
            enableInTreeAutoscaling=SWITCH,
            autoscalerOptions=ANYTHING,
            headGroupSpec=closed(
                "template", serviceType=TEXT, enableIngress=SWITCH, rayStartParams=TEXTS, template=ANYTHING
            ),
            workerGroupSpecs=items(
                closed(
                    *("groupName", "template"),
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    numOfHosts=SECONDS,
                    rayStartParams=TEXTS,
                    template=ANYTHING,
                )
            ),
        ),
    ),
)

# https://docs.anyscale.com/reference/job-api#jobconfig
# https://docs.anyscale.com/reference/compute-config-api#computeconfig
NODE: dict[str, Schema] = {
    "instance_type": TEXT,
    "resources": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
    "labels": TEXTS,
    "flags": ANYTHING,
    "advanced_instance_config": ANYTHING,
}
ANYSCALE = closed(
    *("name", "entrypoint", "image_uri"),
    name=TEXT,
    entrypoint=TEXT,
    image_uri=TEXT,
    working_dir=TEXT,
    env_vars=TEXTS,
    cloud=TEXT,
    project=TEXT,
    tags=TEXTS,
    max_retries=COUNT,
    timeout_s=COUNT,
    compute_config=closed(
        cloud=TEXT,
        head_node=closed("instance_type", **NODE),
        worker_nodes=items(
            closed(
                "instance_type",
                **NODE,
                name=TEXT,
                min_nodes=COUNT,
                max_nodes=SECONDS,
                market_type={"enum": ["ON_DEMAND", "SPOT", "PREFER_SPOT"]},
            )
        ),
    ),
)

# Of the options and variables in https://slurm.schedmd.com/sbatch.html those that such a script may need.
SBATCH_OPTIONS = {
    *("account", "constraint", "cpus-per-task", "error", "exclusive", "gpus-per-node", "gres", "job-name"),
    *("mem", "nodes", "ntasks-per-node", "output", "partition", "qos", "requeue", "time"),
}
SLURM_VARIABLES = {
    *("SLURM_CPUS_PER_TASK", "SLURM_GPUS_ON_NODE", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES"),
    *("SLURM_NTASKS", "SLURM_SUBMIT_DIR"),
}


def read(name: str) -> str:
    """Return the text of a file in deploy/."""
    return (DEPLOY / name).read_text("utf-8")


def shape_problems(document: Any, schema: Schema) -> Iterator[str]:
    """What a document has that its schema does not, and the other way round."""
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        yield f"{error.json_path}: {error.message}"


def start_problems(options: list[str]) -> Iterator[str]:
    """What Ray's own parser says of options of `ray start`."""
    try:
        start.make_context("start", list(options))
    except click.ClickException as error:
        yield f"ray start: {error.format_message()}"


def pod_problems(template: Any) -> Iterator[str]:
    """What Kubernetes' schemas say of a pod's template, strictly: a field that they do not know is one."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **template}
    try:
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"pod: {error.message}"
    for container in pod.get("spec", {}).get("containers", []):
        resources = container.get("resources", {})
        if resources.get("requests") != resources.get("limits"):
            yield f"{container['name']}: requests and limits differ, and Ray counts on the limits"


def rayjob_problems(text: str) -> Iterator[str]:
    """What is wrong with a RayJob."""
    document = yaml.safe_load(text)
    yield from shape_problems(document, RAYJOB)
    cluster = document["spec"]["rayClusterSpec"]
    if cluster.get("rayVersion") != pinned("ray"):
        yield f"Ray {cluster.get('rayVersion')} and not {pinned('ray')}"
    if cluster.get("authOptions") != {"mode": "token"}:
        yield "anybody in the network may run code there: no token"
    if not document["spec"].get("shutdownAfterJobFinishes"):
        yield "it keeps its machines"
    if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield "tasks run on the head"
    if not document["spec"].get("backoffLimit"):  # the default is 0
        yield "it is not started again"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield from pod_problems(group["template"])
        yield from start_problems([f"--{name}={value}" for name, value in group["rayStartParams"].items()])


def launcher_problems(text: str) -> Iterator[str]:
    """What Ray's launcher says of a cluster of virtual machines, and what is wrong with it besides."""
    document = yaml.safe_load(text)
    try:
        validate_config(prepare_config(document))
    except (ValueError, jsonschema.ValidationError) as error:
        yield f"ray up: {getattr(error, 'message', error)}"
        return
    if document["available_node_types"][document["head_node_type"]].get("resources") != {"CPU": 0}:
        yield "tasks run on the head"
    if "--env RAY_AUTH_MODE=token" not in document["docker"].get("run_options", []):
        yield "anybody in the network may run code there: no token"
    if not any(place.endswith(".ray/auth_token") for place in document.get("file_mounts", {})):
        yield "the nodes have no token to compare"
    if not any(command[:2] == ["ray", "down"] for command in usage(text)):
        yield "it keeps its machines"


def anyscale_problems(text: str) -> Iterator[str]:
    """What is wrong with a job of Anyscale."""
    document = yaml.safe_load(text)
    yield from shape_problems(document, ANYSCALE)
    if document["compute_config"]["head_node"].get("resources") != {"CPU": 0}:
        yield "tasks run on the head"
    if not document.get("max_retries", 1):
        yield "it is not started again"


def script_problems(text: str) -> Iterator[str]:
    """What shellcheck says of a script, and its options and variables of Slurm that the manual does not name."""
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, "--format=gcc", "-"], input=text, capture_output=True, text=True)
    yield from done.stdout.splitlines()
    options = re.findall(r"^#SBATCH --([\w-]+)", text, re.M)
    yield from (f"sbatch has no --{option}" for option in sorted(set(options) - SBATCH_OPTIONS))
    if len(options) != text.count("#SBATCH"):
        yield "a line of #SBATCH that is none"
    names = set(re.findall(r"\bSLURM_\w+", text))
    yield from (f"Slurm sets no {name}" for name in sorted(names - SLURM_VARIABLES))
    if "requeue" not in options:
        yield "it is not started again"  # where the cluster's default is not to


def dockerfile_problems(text: str) -> Iterator[str]:
    """What is wrong with the image: another Ray, another Python, or a file that the build lacks."""
    base = re.search(r"^ARG BASE=rayproject/ray:([\d.]+)-py(\d)(\d+)-gpu\nFROM \$\{BASE\}$", text, re.M)
    if not base:
        yield "not built from Ray's image for GPUs"
        return
    if base[1] != pinned("ray"):
        yield f"Ray {base[1]} and not {pinned('ray')}"
    if not SpecifierSet(PROJECT["requires-python"]).contains(Version(f"{base[2]}.{base[3]}")):
        yield f"Python {base[2]}.{base[3]}, and the package takes {PROJECT['requires-python']}"
    copied = [name for names in re.findall(r"^COPY --chown=ray (.+) \S+$", text, re.M) for name in names.split()]
    needed = {"pyproject.toml", "snippets", "constraints.txt", PROJECT["readme"]}
    yield from (f"it lacks {name}" for name in sorted(needed - set(copied)))
    yield from (f"there is no {name}" for name in copied if not (ROOT / name).exists())
    if not re.search(r"^RUN pip install .*-c /tmp/course/constraints\.txt /tmp/course$", text, re.M):
        yield "its versions are not those of the tests"


CHECKS: dict[str, Callable[[str], Iterator[str]]] = {
    "Dockerfile": dockerfile_problems,
    "anyscale.yaml": anyscale_problems,
    "aws.yaml": launcher_problems,
    "rayjob.yaml": rayjob_problems,
    "slurm.sh": script_problems,
}


def pinned(name: str) -> str:
    """Return the version that pyproject.toml pins."""
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    return next(str(r.specifier).removeprefix("==") for r in requirements if r.name == name)


def usage(text: str) -> list[list[str]]:
    """Return the commands that a file's first comment tells its reader to type; `#   ` goes on with the last."""
    typed = re.findall(r"^# ((?:ray|kubectl|sbatch|anyscale|docker) .*(?:\n#   .*)*)", text, re.M)
    return [shlex.split(command.replace("\n#  ", "")) for command in typed]


def usage_problems(text: str) -> Iterator[str]:
    """Commands with a file that does not exist, and those of Ray that its parser does not take."""
    commands = usage(text)
    if not commands:
        yield "nobody learns how to use it"
    for command in commands:
        yield from (
            f"there is no {word}" for word in command if word.startswith("deploy/") and not (ROOT / word).is_file()
        )
        if command[0] == "ray":
            try:
                parser = cli.commands[command[1]]
                parser.make_context(command[1], command[2:])
            except KeyError:
                yield f"ray has no {command[1]}"
            except click.ClickException as error:
                yield f"ray {command[1]}: {error.format_message()}"


def images(text: str) -> list[str]:
    """Return the images that a file names, but for the one that ours is built from."""
    return re.findall(r"\b(?:image|image_uri): (\S+)|docker build .*-t (\S+)", text)


def image_problems(text: str) -> Iterator[str]:
    """Names of our image that are not the project's name and version."""
    ours = f"YOUR-REGISTRY/{PROJECT['name']}:{PROJECT['version']}"
    named = ["".join(pair) for pair in images(text)]
    if not named:
        yield "no image"
    yield from (f"the image {name}, and not {ours}" for name in named if name != ours)


@cache
def sources_that_read() -> str:
    """Return the sources of the package, and of what of Ray reads the environment first."""
    folder = Path(ray.__file__).parent
    places = [ROOT / "snippets", folder / "_private", folder / "scripts"]
    return "\n".join(path.read_text("utf-8") for place in places for path in sorted(place.rglob("*.py")))


def variable_problems(text: str) -> Iterator[str]:
    """Variables that a file sets and nobody reads."""
    for name in sorted(set(re.findall(r"\b([A-Z][A-Z0-9_]{3,})=", text)) - {"PATH", "BASE"}):
        if f'"{name}"' not in sources_that_read():
            yield f"nobody reads {name}"


def command_problems(command: list[str]) -> Iterator[str]:
    """What the parser of the course's command says of a command line."""
    words = list(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    if words[:3] != PYTHON_AND_MODULE:
        yield f"another command: {shlex.join(words[:3])}"
        return
    try:
        options = build_parser().parse_args(words[3:])
    except SystemExit:
        yield f"{PYTHON_AND_MODULE[-1]} does not take: {shlex.join(words[3:])}"
        return
    if sorted(word for word in words if word.startswith("--")) != ["--manifest", "--model", "--output"]:
        yield "other options than the others"
        return
    for place in (options.manifest, options.output):
        if not place.startswith(("s3://YOUR-BUCKET/", "/shared/")):
            yield f"{place}, which not every node sees"
    if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", options.model):
        yield f"{options.model}, which may be another when it is started again"


def commands(name: str, text: str) -> list[list[str]]:
    """Return the command lines of the course that a file runs on a cluster."""
    if name == "aws.yaml":
        return [shlex.split(command[3]) for command in usage(text) if command[1] == "exec"]
    document = yaml.safe_load(text)
    return [shlex.split((document["spec"] if name == "rayjob.yaml" else document)["entrypoint"])]


def all_problems(name: str, text: str) -> list[str]:
    """Return what is wrong with the text of a file of this name."""
    found = [*CHECKS[name](text), *usage_problems(text), *variable_problems(text)]
    if name != "slurm.sh":  # which has a virtual environment in place of an image
        found += image_problems(text)
    if name not in ("slurm.sh", "Dockerfile"):
        run = commands(name, text)
        found += (
            [problem for command in run for problem in command_problems(command)] if run else ["it runs nothing"]
        )
    return found


def test_each_file_has_its_checks_and_is_shown_on_the_page() -> None:
    assert {path.name for path in DEPLOY.iterdir() if path.is_file()} == set(FILES) == set(CHECKS)
    shown = re.findall(r'--8<-- "deploy/([^"]+)"', PAGE.read_text("utf-8"))
    assert sorted(shown) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_its_platform_takes(name: str) -> None:
    assert all_problems(name, read(name)) == []


FAULTS = {
    "no-such-field-of-a-job": ("rayjob.yaml", "shutdownAfterJobFinishes", "shutdownAfterJobFinish", "unexpected"),
    "no-such-field-of-a-cluster": ("rayjob.yaml", "rayVersion", "rayVersions", "unexpected"),
    "no-such-field-of-a-pod": ("rayjob.yaml", "serviceAccountName", "serviceAcountName", "pod: "),
    "no-such-field-of-a-container": ("rayjob.yaml", "resources:", "resource:", "pod: "),
    "no-image-in-the-pod": ("rayjob.yaml", "image:", "images:", "pod: "),
    "a-number-for-a-text": ("rayjob.yaml", 'num-cpus: "0"', "num-cpus: 0", "is not of type 'string'"),
    "no-such-option-of-start": ("rayjob.yaml", 'num-cpus: "0"', 'num-cpu: "0"', "ray start: No such option"),
    "no-such-value-of-start": ("rayjob.yaml", 'num-cpus: "0"', 'num-cpus: "none"', "ray start: Invalid value"),
    "more-asked-than-given": ("rayjob.yaml", "limits: {cpu: 8", "limits: {cpu: 16", "requests and limits differ"),
    "another-ray": ("rayjob.yaml", "rayVersion: 2.60.0", "rayVersion: 2.59.0", "Ray 2.59.0 and not"),
    "no-token": ("rayjob.yaml", "mode: token", "mode: disabled", "no token"),
    "started-once": ("rayjob.yaml", "backoffLimit: 3", "backoffLimit: 0", "it is not started again"),
    "kept-machines": ("rayjob.yaml", "Finishes: true", "Finishes: false", "it keeps its machines"),
    "another-image": ("rayjob.yaml", "inference:0.1.0", "inference:0.2.0", "the image "),
    "another-module": ("rayjob.yaml", "optimization.production", "optimization.produce", "another command"),
    "any-revision": ("rayjob.yaml", "resnet-50@34c2", "resnet-50@main-34c2", "may be another when it is started"),
    "no-such-option": ("rayjob.yaml", "--output", "--outputs-to", "does not take"),
    "a-place-of-one-node": ("rayjob.yaml", "s3://YOUR-BUCKET/predictions", "/tmp", "which not every node sees"),
    "no-such-file": ("rayjob.yaml", "-f deploy/rayjob.yaml", "-f deploy/job.yaml", "there is no deploy/job.yaml"),
    "no-such-field-of-the-launcher": ("aws.yaml", "max_workers: 2\np", "max_worker: 2\np", "ray up: "),
    "no-such-head": ("aws.yaml", "head_node_type: head", "head_node_type: first", "ray up: "),
    "fewer-than-asked": ("aws.yaml", "max_workers: 2\np", "max_workers: 1\np", "ray up: "),
    "tasks-on-the-head": ("aws.yaml", "resources: {CPU: 0}", "resources: {}", "tasks run on the head"),
    "no-token-to-compare": ("aws.yaml", ".ray/auth_token:", ".ray/token:", "no token to compare"),
    "nobody-reads-it": ("aws.yaml", "RAY_ADDRESS=auto", "RAY_ADRESS=auto", "nobody reads RAY_ADRESS"),
    "no-such-command": ("aws.yaml", "# ray exec", "# ray execute", "ray has no execute"),
    "no-such-option-of-up": ("aws.yaml", "ray up --yes", "ray up --sure", "ray up: No such option"),
    "never-down": ("aws.yaml", "# ray down --yes deploy/aws.yaml\n", "", "it keeps its machines"),
    "no-such-field-of-anyscale": ("anyscale.yaml", "image_uri", "image_url", "unexpected"),
    "no-such-field-of-a-node": ("anyscale.yaml", "max_nodes", "max_node", "unexpected"),
    "no-retry": ("anyscale.yaml", "max_retries: 3", "max_retries: 0", "it is not started again"),
    "no-such-option-of-sbatch": ("slurm.sh", "--gpus-per-node", "--gpu-per-node", "sbatch has no --gpu-per-node"),
    "no-such-variable-of-slurm": (
        "slurm.sh",
        "_GPUS_ON_NODE",
        "_GPUS_ON_NODES",
        "Slurm sets no SLURM_GPUS_ON_NODES",
    ),
    "not-requeued": ("slurm.sh", "#SBATCH --requeue\n", "", "it is not started again"),
    "unquoted": ("slurm.sh", '--address "$RAY_ADDRESS"', "--address $RAY_ADDRESS", "SC2086"),
    "nobody-reads-the-mode": ("slurm.sh", "RAY_AUTH_MODE", "RAY_AUTH_MODUS", "nobody reads RAY_AUTH_MODUS"),
    "an-image-of-another-ray": ("Dockerfile", "ray:2.60.0", "ray:2.9.0", "Ray 2.9.0 and not"),
    "an-image-of-another-python": ("Dockerfile", "py311", "py310", "Python 3.10"),
    "an-image-without-gpus": ("Dockerfile", "-gpu", "-cpu", "not built from"),
    "no-constraints": ("Dockerfile", "-c /tmp/course/constraints.txt ", "", "not those of the tests"),
    "not-copied": ("Dockerfile", "README.md ", "", "it lacks README.md"),
    "nothing-to-copy": ("Dockerfile", "LICENSE", "LICENCE", "there is no LICENCE"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    name, old, new, cause = FAULTS[fault]
    text = read(name)
    assert old in text
    found = all_problems(name, text.replace(old, new))
    assert any(cause in problem for problem in found), found


STAND_INS = {
    "scontrol": 'test "$*" = "show hostnames node-[1-2]" && printf "node-1\\nnode-2\\n"',
    # One task a node, as `--ntasks-per-node=1` asks for.
    "srun": 'echo "srun $1" >>"$CALLS"; shift; for node in 1 2; do "$@"; done',
    "ray": (
        'echo "ray mode=$RAY_AUTH_MODE address=$RAY_ADDRESS $*" >>"$CALLS"\n'
        'if test "$1" = get-auth-token; then echo SECRET; fi'
    ),
}


def slurm_calls(text: str, folder: Path) -> tuple[list[str], str]:
    """Run a script with stand-ins for the commands of Slurm and Ray; return their calls, and what was printed."""
    for name, line in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    (folder / "job.sh").write_text(text)
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_GPUS_ON_NODE": "1",
    }
    done = subprocess.run(["bash", folder / "job.sh"], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (folder / "calls").read_text().splitlines(), done.stdout + done.stderr


def slurm_problems(text: str, folder: Path) -> Iterator[str]:
    """What is wrong with what a script of Slurm starts, as Ray's own parsers read it."""
    calls, printed = slurm_calls(text, folder)
    if "SECRET" in printed:
        yield "the token is in the log of the job"
    token, srun, *nodes = calls
    if not re.fullmatch(r"ray mode=token address=\S+ get-auth-token --generate", token):
        yield f"no token before Ray starts: {token}"
    if srun != "srun --cpus-per-task=16":
        yield f"the tasks have one core: {srun}"
    if len(nodes) != 2 or len(set(nodes)) != 1:
        yield f"not the same command on both nodes: {nodes}"
    words = shlex.split(nodes[0])
    if words[:4] != ["ray", "mode=token", "address=node-1:6379", "symmetric-run"]:
        yield f"not the address of the first node: {words[:4]}"
    own, course = words[4 : words.index("--")], words[words.index("--") + 1 :]
    params = symmetric_run.make_context("symmetric_run", list(own)).params
    if (params["address"], params["min_nodes"]) != ("node-1:6379", 2):
        yield f"it does not wait for both nodes: {params}"
    rest = curate_and_validate_ray_start_args(own)
    yield from start_problems(rest)
    if sorted(rest) != ["--num-cpus", "--num-gpus", "1", "16"]:
        yield f"Ray takes what it finds on the node: {rest}"
    yield from command_problems(course)
    if course[-1] != "/shared/predictions/7":  # the number of the job, which it keeps
        yield f"another place the next time: {course[-1]}"


def test_slurm_starts_ray_once_a_node_and_the_command_on_the_first(tmp_path: Path) -> None:
    assert list(slurm_problems(read("slurm.sh"), tmp_path)) == []


SLURM_FAULTS = {
    "another-address": ('--address "$RAY_ADDRESS"', '--address "localhost:6379"', "does not wait for both nodes"),
    "no-such-option": ("--num-cpus", "--cpus", "ray start: No such option"),
    "all-cores": ('--num-cpus "$SLURM_CPUS_PER_TASK" ', "", "Ray takes what it finds"),
    "one-core": ('srun --cpus-per-task="$SLURM_CPUS_PER_TASK"', "srun --overlap", "the tasks have one core"),
    "token-in-the-log": (" >/dev/null", "", "the token is in the log"),
    "no-mode": ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "no token before Ray starts"),
    "another-option": ("--output", "--limit 3 --output", "other options than the others"),
    "another-place-each-time": ("predictions/$SLURM_JOB_ID", "predictions/$RANDOM", "another place the next time"),
    "a-local-place": ("/shared/predictions", "/tmp/predictions", "which not every node sees"),
}


@pytest.mark.parametrize("fault", SLURM_FAULTS)
def test_a_fault_of_the_script_is_caught(fault: str, tmp_path: Path) -> None:
    old, new, cause = SLURM_FAULTS[fault]
    text = read("slurm.sh")
    assert old in text
    found = list(slurm_problems(text.replace(old, new), tmp_path))
    assert any(cause in problem for problem in found), found


@pytest.mark.parametrize("has_token", [True, False])
def test_ray_start_turns_the_token_on_only_where_it_finds_one(has_token: bool, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    if has_token:
        generate = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(generate, env=environment, check=True, capture_output=True)
        assert (tmp_path / ".ray" / "auth_token").read_text()
    ask = (
        "import os; from ray._private.authentication import authentication_token_setup as setup; "
        "print(setup.maybe_enable_token_auth_if_token_available(), os.environ.get('RAY_AUTH_MODE'))"
    )
    done = subprocess.run([sys.executable, "-c", ask], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ("True token" if has_token else "False None")
    called = inspect.getsource(start.callback)
    assert "maybe_enable_token_auth_if_token_available()" in called
