"""Folders in a browser: what is shown of them and to whom, asked over loopback."""

from __future__ import annotations

import http.client
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest
import torch

from optscope import Recorder
from optscope.cli import main
from optscope.engine.execute import Inline
from optscope.engine.plan import Plan
from optscope.engine.store import Store
from optscope.errors import UserError
from optscope.files import RECORDED
from optscope.following import Follower
from optscope.lab import recorded_page
from optscope.optim import SGD
from optscope.probes.accuracy import Accuracy
from optscope.protocol.comparison import Arm, Comparison
from optscope.protocol.events import Quiet
from optscope.protocol.search import Grid
from optscope.protocol.session import run_experiments
from optscope.serving import Server
from tiny import TASK

EVIL = "<script>alert(1)</script>"
GIVEN = Comparison("c", TASK, (Arm(EVIL, SGD(lr=0.1), Grid((0.1, 0.3))), Arm("other", SGD(lr=0.2))), Plan(1, 32),
                   (Accuracy(),), (1, 2))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders: one of a finished comparison, one with a report too, one that is damaged, one that is nobody's."""
    root = tmp_path_factory.mktemp("served") / "runs"
    run_experiments([GIVEN], Store(root / "a b&c"), Inline(), Quiet())
    run_experiments([GIVEN], Store(root / "deep" / "er"), Inline(), Quiet())
    (root / "deep" / "er" / "report.html").write_text("<h1>the report</h1>")
    (root / "deep" / "er" / "run.json").write_text(json.dumps({"answer": f"Take {EVIL}.\nmore"}))
    run_experiments([GIVEN], Store(root / "spoilt"), Inline(), Quiet())
    (root / "spoilt" / "entries.json").write_text("{}")
    (root / "nobody").mkdir()
    (root / "nobody" / "report.html").write_text("secret")
    (root.parent / "secret.html").write_text("secret")
    Store(root.parent / "outside")
    (root.parent / "outside" / "report.html").write_text("secret")
    (root / "link").symlink_to(root.parent / "outside")
    (root / "deep" / "er" / "report.md").symlink_to(root.parent / "secret.html")
    return root


@pytest.fixture(scope="module")
def server(root):
    with Server(root, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asked(server, path, method="GET", **headers):
    """Return status, headers and text of an answer to a path that is sent as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def test_the_list_holds_every_folder_with_its_state_and_answer_and_escapes_all(server):
    with urllib.request.urlopen(server.url, timeout=10) as answer:
        page = answer.read().decode()
    assert page.count("<tr>") == 1 + 3
    assert '<a href="/folder/a%20b%26c/">a b&amp;c</a>' in page
    assert '<a href="/folder/deep/er/">deep/er</a>' in page
    assert "Take &lt;script&gt;alert(1)&lt;/script&gt;." in page
    assert "entries.json is not what optscope writes there" in page
    assert page.count("<td>finished") == 2
    assert EVIL not in page
    assert "nobody" not in page
    assert "link" not in page.replace("inline", "")


def test_a_folder_shows_how_it_stands_until_it_has_a_report(server):
    status, headers, page = asked(server, "/folder/a%20b%26c/")
    assert status == 200
    assert "<strong>finished</strong>" in page
    assert "&lt;script&gt;" in page
    assert EVIL not in page
    assert headers["Refresh"] == "10"
    assert '<a href="?still">' in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    _, held, still = asked(server, "/folder/a%20b%26c/?still")
    assert "Refresh" not in held
    assert still.replace('held still: <a href="?">', "") != still
    assert "Refresh" not in asked(server, "/?still")[1]
    assert asked(server, "/folder/deep/er/")[2] == "<h1>the report</h1>"


def test_while_a_command_works_its_folder_shows_how_it_stands_and_where_the_last_report_is(server, root):
    owner = root / "deep" / "er" / ".owner"
    owner.write_text(f"{os.getpid()} on {platform.node()}")
    try:
        _, headers, page = asked(server, "/folder/deep/er/")
    finally:
        owner.unlink()
    assert "<strong>running</strong>" in page
    assert headers["Refresh"] == "2"
    assert '<a href="/folder/deep/er/report.html">' in page


@pytest.mark.parametrize("path", [
    "/folder/nobody/", "/folder/nobody/report.html", "/folder/../secret.html", "/folder/../outside/report.html",
    "/folder/%2e%2e/outside/report.html", "/folder/..%2foutside%2freport.html", "/folder/link/report.html",
    "/folder/link/", "/folder//etc/", "/folder/deep/er/optscope.json", "/folder/deep/er/.owner",
    "/folder/deep/er/report.md", "/folder/deep/er/summary.csv", "/folder/%00/", "/folder/" + 5000 * "a" + "/",
    "/deep/er/report.html", "/etc/passwd", "/folder"])
def test_what_is_not_a_file_of_a_folder_below_is_not_there(server, path):
    status, _, text = asked(server, path)
    assert status == 404
    assert "secret" not in text


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1", 200), ("127.0.0.1:1234", 200), ("localhost:8000", 200), ("[::1]:8000", 200), ("127.7.7.7", 200),
    ("evil.example", 403), ("evil.example:8000", 403), ("127.0.0.1.evil.example", 403), ("192.168.0.7", 403),
    ("", 403), ("[", 403)])
def test_a_request_by_another_hosts_name_is_refused(server, host, status):
    assert asked(server, "/", Host=host)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server, method):
    assert asked(server, "/", method)[0] == 501


def test_a_head_is_an_answer_without_a_page(server):
    status, headers, text = asked(server, "/", "HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 0


def test_a_folder_that_comes_is_shown_and_the_root_may_be_one(tmp_path):
    with Server(tmp_path, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert "No folder that optscope made lies here yet" in asked(server, "/")[2]
        Store(tmp_path)
        assert '<a href="/folder/">this folder</a>' in asked(server, "/")[2]
        assert "<strong>empty</strong>" in asked(server, "/folder/")[2]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("given", "sentence"), [
    ({"host": "0.0.0.0"}, "at 0.0.0.0 everyone who can reach this machine may read the reports: leave --host"),
    ({"host": "::"}, "at :: everyone who can reach"),
    ({"host": "example.org"}, "an address of this machine is expected, such as 127.0.0.1; got example.org"),
    ({"port": 99999}, "port 99999 of 127.0.0.1 cannot be had")])
def test_what_cannot_be_served_is_one_sentence(tmp_path, given, sentence):
    with pytest.raises(UserError, match=sentence):
        Server(tmp_path, **given)


def test_a_folder_that_is_not_there_and_a_port_that_is_taken_are_told(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*: give the one in which runs lie"):
        Server(tmp_path / "none")
    with Server(tmp_path, port=0) as server, pytest.raises(UserError, match="give --port another number"):
        Server(tmp_path, port=server.server_port)


def test_an_open_server_answers_to_addresses_and_its_own_name(tmp_path):
    with Server(tmp_path, "0.0.0.0", 0, open_to_all=True) as server:
        assert server.answers_to("192.168.0.7:80")
        assert server.answers_to(platform.node())
        assert not server.answers_to("evil.example")


def test_the_command_says_where_and_ends_by_ctrl_c(tmp_path):
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's & ignores it
    command = [sys.executable, "-c", heard + "from optscope.cli import main; main()", "serve", str(tmp_path),
               "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            url = line.partition(" at ")[2].partition(" ")[0]
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def test_a_damaged_folder_says_on_its_page_what_is_wrong(server):
    status, _, page = asked(server, "/folder/spoilt/")
    assert status == 200
    assert "entries.json is not what optscope writes there" in page


def test_recordings_are_told_of_and_their_report_is_of_what_is_there_now(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "mine"
    recorders = {seed: Recorder(folder, arm=EVIL, seed=seed, task=TASK, every=1, probes=(), at_end=())
                 for seed in (1, 2)}
    model = TASK.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorders[1].step(model, optimizer, 0.75)
    follower = Follower(folder)
    status = follower.status()
    assert (status.state, status.done, status.total, status.works) == ("recording", 0, 2, True)
    assert [(each.arm, each.seed, each.step, dict(each.values)) for each in status.running] == [
        (EVIL, 1, 1, {"training loss": 0.75}), (EVIL, 2, 0, {})]
    assert "0 of 2 trainings have closed" in str(status)
    made = []

    def page_of(place):
        made.append(place)
        return recorded_page(place)

    with Server(tmp_path, port=0, page_of=page_of) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        _, _, listed = asked(server, "/")
        assert "recording" in listed
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        first, again = (asked(server, "/folder/mine/") for _ in range(2))
        assert first[0] == 200
        assert first[2] == again[2]
        assert made == [folder.resolve()]  # once, as nothing has come
        assert "Recorded trainings of" in first[2]
        assert EVIL not in first[2]
        recorders[1].step(model, optimizer, 0.5)
        assert asked(server, "/folder/mine/")[2] != first[2]
        assert len(made) == 2
        for each in recorders.values():
            each.step(model, optimizer, 0.25)
            each.close()
        assert {path: before[path] for path in before if path.name != RECORDED} == {
            path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != RECORDED}
        assert follower.status().state == "recorded"
        next((folder / "runs").glob(f"*/{RECORDED}")).write_text("{}\n")
        status, _, said = asked(server, "/folder/mine/")
        assert status == 200
        assert "is not what a recorder writes" in said
        server.shutdown()
        thread.join()
    monkeypatch.setattr("sys.argv", ["optscope", "status", str(folder)])
    with pytest.raises(SystemExit):
        main()
    assert "is not what a recorder writes" in capsys.readouterr().err
