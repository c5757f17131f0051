"""Pages with a fault planted in them, and true ones beside them."""

from dataclasses import dataclass

# Every form that the site renders as code that runs; `{python}` and `{bash}` are where the code goes.
FORMS = {
    "backticks": "```python\n{python}\n```\n",
    "tildes": "~~~python\n{python}\n~~~\n",
    "more_backticks": "`````python\n{python}\n`````\n",
    "py": "```py\n{python}\n```\n",
    "python3": "```python3\n{python}\n```\n",
    "capital": "```Python\n{python}\n```\n",
    "title": '```python title="a.py"\n{python}\n```\n',
    "line_numbers": '```python linenums="1" hl_lines="1"\n{python}\n```\n',
    "attributes": "``` {{.python .annotate}}\n{python}\n```\n",
    "attribute_title": '```{{ .py title="a.py" }}\n{python}\n```\n',
    "admonition": '!!! note "x"\n\n    ```python\n    {python}\n\n    x = 1\n    ```\n',
    "details": '??? abstract "Code from earlier pages"\n\n    ```python\n    {python}\n    ```\n',
    "tab": '=== "CPU"\n\n    ```python\n    {python}\n    ```\n\n=== "GPU"\n\n    Text.\n',
    "nested": '=== "CPU"\n\n    !!! note\n\n        ```python\n        {python}\n        ```\n',
    "list": "1. Item\n\n    ```python\n    {python}\n    ```\n",
    "quote": "> ```python\n> {python}\n> ```\n",
    "html": '<div class="wrong" markdown="1">\n\n```python\n{python}\n```\n\n</div>\n',
    "footnote": "Text.[^1]\n\n[^1]:\n    Note.\n\n    ```python\n    {python}\n    ```\n",
    "after_comment": "<!--\n```python\nassert False, 'not rendered'\n```\n-->\n\n```python\n{python}\n```\n",
    "included_code": '```python title="part.py"\n--8<-- "{stem}.py:part"\n```\n',
    "included_page": '--8<-- "{stem}.inc"\n',
    "included_block": "```python\n--8<--\n{stem}.py:part\n--8<--\n```\n",
    "bash": "```bash\n{bash}\n```\n",
    "sh": "```sh\n{bash}\n```\n",
    "shell": '```shell title="x"\n{bash}\n```\n',
    "zsh": "~~~zsh\n{bash}\n~~~\n",
}
FRONT = "---\ntitle: A page\n---\n\n# Title\n\n"

# What cannot be run or recognised: page, line, and what is said about it.
REFUSED = {
    "console_session": ("x\n\n```pycon\n>>> 1\n```\n", 3, "'pycon' can neither be run"),
    "unknown_language": ("```pyhton\nx = 1\n```\n", 1, "unknown language 'pyhton'"),
    "other_language": ("```javascript\nx\n```\n", 1, "'javascript' can neither be run"),
    "no_language": ("\n```\nx = 1\n```\n", 2, "without a language"),
    "indented": ("Text.\n\n    x = 1\n", 3, "indented without a fence"),
    "indented_fence": ("Text.\n\n    ```python\n    x = 1\n    ```\n", 3, "indented without a fence"),
    "raw_html": ('<pre><code class="language-python">a &lt; b</code></pre>\n', 1, "raw HTML"),
    "unknown_option": ("```python frob=1\nx = 1\n```\n", 1, "does not render as code"),
    "in_list_line": ("- ```python\n  x = 1\n  ```\n", 1, "does not render as code"),
    "unclosed": ("Text.\n\n```python\nx = 1\n", 3, "does not render as code"),
    "empty": ("```python\n\n```\n", 1, "an empty block"),
    "missing_section": ('\n```python\n--8<-- "pyproject.toml:nowhere"\n```\n', 3, "section 'nowhere'"),
    "missing_file": ('```python\n--8<-- "no/such.py:part"\n```\n', 2, "no/such.py"),
    "skip": ("<!--pytest-codeblocks:skip-->\n```python\nx\n```\n", 1, "no block is passed over"),
    "skipfile": ("<!--pytest-codeblocks:skipfile-->\n```python\nx\n```\n", 1, "no block is passed over"),
    "importorskip": (
        "<!--pytest-codeblocks:importorskip(x)-->\n```python\nx\n```\n",
        1,
        "no block is passed over",
    ),
    "mark_skip": ("<!--pytest.mark.skip-->\n```python\nx\n```\n", 1, "no block is passed over"),
    "mark_skipif": ("<!--pytest.mark.skipif(True, reason='')-->\n```python\nx\n```\n", 1, "passed over"),
    "mark_xfail": ("<!--pytest.mark.xfail-->\n```python\nx\n```\n", 1, "no block is passed over"),
    "misspelt": ("<!--pytest-codeblock:expected-output-->\n```text\nx\n```\n", 1, "not one of"),
    "stray_directive": ("<!--pytest.mark.gpu-->\n\nText.\n\n```python\nx\n```\n", 1, "no code block follows"),
    "gpu_without_caption": ("Text.\n\n<!--pytest.mark.gpu-->\n```python\nx\n```\n", 4, "needs a caption"),
    "output_of_nothing": (
        "<!--pytest-codeblocks:expected-output-->\n```text\nx\n```\n",
        1,
        "no executed block",
    ),
    "output_not_text": (
        "```python\nx = 1\n```\n<!--pytest-codeblocks:expected-output-->\n```json\n1\n```\n",
        4,
        "shown in a `text` block",
    ),
    "any_output": (
        "```python\nx = 1\n```\n<!--pytest-codeblocks:expected-output-->\n```text\n...\n```\n",
        4,
        "matches anything",
    ),
    "console_without_command": ("```console\npip install x\n```\n", 1, "begins with `$ `"),
}

OUTPUT = "<!--pytest-codeblocks:expected-output-->\n```text\n{}\n```\n"


@dataclass
class Fault:
    """A page that must fail at a line, for a cause that the report names."""

    page: str
    line: int
    cause: str


FAULTS = {
    "exception": Fault("```python\nx = [1]\n```\n\n```python\nx[3]\n```\n", 5, "IndexError: list index"),
    "syntax": Fault("```python\nx = (\n```\n", 1, "SyntaxError"),
    "exit_0": Fault("```python\nraise SystemExit(0)\n```\n", 1, "SystemExit: 0"),
    "exit_process": Fault("```python\nimport os\nos._exit(0)\n```\n", 1, "ended its process, with status 0"),
    "interrupt": Fault("```python\nraise KeyboardInterrupt\n```\n", 1, "KeyboardInterrupt"),
    "hang": Fault(
        "<!--pytest.mark.timeout(0.5)-->\n```python\nimport time\ntime.sleep(100)\n```\n",
        2,
        "did not end within 0.5 s, in: time.sleep(100)",
    ),
    "stubborn_hang": Fault(
        "<!--pytest.mark.timeout(0.5)-->\n```python\nimport time\nwhile True:\n    try:\n"
        "        time.sleep(100)\n    except BaseException:\n        pass\n```\n",
        2,
        "did not end within 0.5 s",
    ),
    "bash_hang": Fault("<!--pytest.mark.timeout(0.5)-->\n```bash\nsleep 100\n```\n", 2, "did not end within"),
    "thread": Fault(
        "```python\nimport threading, time\n"
        "threading.Thread(target=time.sleep, args=(100,), name='left-over', daemon=True).start()\n```\n",
        1,
        "left a thread running: left-over",
    ),
    "thread_pool": Fault(
        "```python\nfrom concurrent.futures import ThreadPoolExecutor\nimport time\n"
        "ThreadPoolExecutor(1, 'left-pool').submit(time.sleep, 100)\n```\n",
        1,
        "left a thread running: left-pool",
    ),
    "process": Fault(
        "```python\nimport subprocess\nsubprocess.Popen(['sleep', '1234'])\n```\n",
        1,
        "left a process running: sleep 1234",
    ),
    "background": Fault("```bash\nsleep 1234 &\n```\n", 1, "left a process running: sleep 1234"),
    "daemon": Fault(
        "```bash\nsetsid bash -c 'sleep 1234 & disown' \n```\n", 1, "left a process running: sleep 1234"
    ),
    "folder": Fault("```python\nimport os\nos.chdir('/')\n```\n", 1, "working directory changed, to /"),
    "output": Fault(f"```python\nprint(41)\n```\n{OUTPUT.format('42')}", 1, "the output differs"),
    "no_output": Fault(f"```python\nx = 1\n```\n{OUTPUT.format('42')}", 1, "the output differs"),
    "more_output": Fault(f"```python\nprint('a\\nb')\n```\n{OUTPUT.format('a')}", 1, "the output differs"),
    "bash_output": Fault(f"```bash\necho 41\n```\n{OUTPUT.format('42')}", 1, "the output differs"),
    "pipe": Fault("```bash\nfalse | cat\n```\n", 1, "exit status 1"),
    "unset_variable": Fault("```bash\necho $no_such_variable\n```\n", 1, "exit status 1"),
    "first_command": Fault("```bash\nfalse\ntrue\n```\n", 1, "exit status 1"),
    "raises_nothing": Fault(
        "<!--pytest-codeblocks:raises(ValueError)-->\n```python\nx = 1\n```\n", 2, "raised nothing"
    ),
    "raises_other": Fault(
        "<!--pytest-codeblocks:raises(ValueError)-->\n```python\n{}[1]\n```\n", 2, "KeyError: 1"
    ),
    "raises_differently": Fault(
        "<!--pytest-codeblocks:raises(ValueError)-->\n```python\nraise ValueError('b')\n```\n"
        + OUTPUT.format("ValueError: a"),
        2,
        "the output differs",
    ),
    "imports_snippets": Fault("```python\nimport snippets\n```\n", 1, "No module named 'snippets'"),
    "imports_tests": Fault("```python\nimport tests.page_run\n```\n", 1, "No module named 'tests'"),
    "bash_imports_snippets": Fault("```bash\npython -c 'import snippets'\n```\n", 1, "exit status 1"),
    "section": Fault('Text.\n\n```python\n--8<-- "section.py:part"\n```\n', 3, "ZeroDivisionError"),
    "name_of_other_page": Fault("```python\nname_of_another_page\n```\n", 1, "NameError"),
}

TRUE_PAGES = {
    "namespace": (
        "```python\nname_of_another_page = 1\n```\n\n```python\nprint(name_of_another_page, __name__)\n```\n"
        + OUTPUT.format("1 __main__")
    ),
    "empty_folder": "```bash\nls -A\ntouch a\n```\n\n```python\nimport os\nprint(os.listdir())\n```\n"
    + OUTPUT.format("['a']"),
    "ellipsis": "```python\nprint('a', 17, '\\nb\\nc\\nd  ')\n```\n" + OUTPUT.format("a ...\nb\n...\nd"),
    "raises": (
        "<!--pytest-codeblocks:raises(LookupError)-->\n```python\nprint('before')\n{}['a']\n```\n"
        + OUTPUT.format("KeyError: 'a'")
    ),
    "source": (
        "```python\nimport inspect\n\ndef double(x):\n    return 2 * x\n\n"
        "print(inspect.getsource(double))\n```\n" + OUTPUT.format("def double(x):\n    return 2 * x")
    ),
    "finished_thread": (
        "```python\nimport threading\nt = threading.Thread(target=print, args=('hi',))\nt.start()\n```\n"
        + OUTPUT.format("hi")
    ),
    "environment": "```python\nimport os\nos.environ['PLANTED'] = '1'\n```\n\n```bash\necho $PLANTED\n```\n"
    + OUTPUT.format("1"),
    "environment_of_next_page": "```bash\necho ${PLANTED-unset}\n```\n" + OUTPUT.format("unset"),
    "gpu": (
        "Last run on an H200, 2026-11-01.\n\n<!--pytest.mark.gpu-->\n"
        "```python\nimport torch\ntorch.ones(1).cuda()\n```\n"
    ),
    "gpu_module": (
        "Never by us: the package does not exist.\n\n<!--pytest.mark.gpu(no_such_package)-->\n"
        "```python\nimport no_such_package\n```\n"
    ),
    "data": "```yaml\na: 1\n```\n\n```toml\na = 1\n```\n\n```json\n1\n```\n\n"
    "````markdown\n```python\nx\n```\n````\n",
}

# These need the cluster.
RAY_FAULTS = {
    "udf": Fault(
        "```python\nimport ray\n\ndef broken(batch):\n    raise ValueError('a bad batch')\n```\n\n"
        "```python\nray.data.range(4).map_batches(broken).take_all()\n```\n",
        8,
        "ValueError: a bad batch",
    ),
    "constructor": Fault(
        "```python\nimport ray\n\nclass Broken:\n    def __init__(self):\n        raise ValueError('no model')\n\n"
        "    def __call__(self, batch):\n        return batch\n\n"
        "ray.data.range(4).map_batches(Broken, compute=ray.data.ActorPoolStrategy(size=1)).take_all()\n```\n",
        1,
        "ValueError: no model",
    ),
    "read": Fault(
        "```python\nimport ray\n\nray.data.read_parquet('/no/such/file.parquet').take_all()\n```\n",
        1,
        "FileNotFoundError",
    ),
    # What a worker prints is not what the block prints.
    "worker_prints": Fault(
        "```python\nimport ray\n\n@ray.remote\ndef say():\n    print('42')\n\nray.get(say.remote())\n```\n"
        + OUTPUT.format("42"),
        1,
        "the output differs",
    ),
    # A worker that dies is replaced and the block goes on; what it then says is still compared.
    "retried": Fault(
        "```python\nimport os, pathlib, ray\n\nfirst = pathlib.Path('tried').absolute()\n\n"
        "@ray.remote\ndef count():\n"
        "    if not first.exists():\n        first.touch()\n        os._exit(1)\n    return 41\n\n"
        "print(ray.get(count.remote()))\n```\n" + OUTPUT.format("42"),
        1,
        "the output differs",
    ),
}
RAY_TRUE_PAGES = {
    "actor": (
        "```python\nimport ray\n\nray.init()\n"
        "ray.data.DataContext.get_current().target_max_block_size = 4321\n\n"
        "class Double:\n    def __call__(self, batch):\n        print('from a worker')\n"
        "        return {'id': 2 * batch['id']}\n\n"
        "pool = ray.data.ActorPoolStrategy(size=2)\n"
        "rows = ray.data.range(4).map_batches(Double, compute=pool, batch_size=2, num_gpus=1).take_all()\n"
        "print(sorted(row['id'] for row in rows))\n```\n" + OUTPUT.format("[0, 2, 4, 6]")
    ),
    "context_of_next_page": (
        "```python\nimport ray\n\nassert not ray.is_initialized()\n"
        "print(ray.data.DataContext.get_current().target_max_block_size == 4321)\n```\n" + OUTPUT.format("False")
    ),
    "package": "---\npackage: true\n---\n\n```bash\npython -c 'import snippets'\n```\n",
    "samples": (
        "```python\nimport os\n\nimport ray\nprint(os.environ['IMAGES'], os.environ['MODEL'])\n```\n"
        + OUTPUT.format("/the/images a/model@1")
    ),
}
