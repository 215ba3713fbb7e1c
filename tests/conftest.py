"""One thread, one kernel path and, in CI, the same examples: a test gives the same bits each time."""

import http.server
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # both before torch loads, which reads them once
os.environ.setdefault("MKL_CBWR", "AVX2")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# No deadline: on a shared machine the clock says nothing about the code.
hypothesis.settings.register_profile("optscope", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("optscope")


@pytest.fixture(autouse=True)
def same_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Files of tasks put their folder on the path of modules: the next test finds neither it nor what it led to.

    Workers are brought every module of the user's that is loaded.
    """
    path, modules, written = list(sys.path), set(sys.modules), str(tmp_path_factory.getbasetemp())
    yield
    sys.path[:] = path
    for name in sys.modules.keys() - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(written):
            del sys.modules[name]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A site of one folder on this machine, and its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = tmp_path / "site"
    site.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield site, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()
