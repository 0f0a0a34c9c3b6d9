"""Who may talk to the studio, and what no request reaches."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from studios import PORT, TOKEN

from slime_studio.app import make_app
from slime_studio.command import main
from slime_studio.project import Project
from slime_studio.security import project_token
from slime_studio.studio import Studio

HOST = f"127.0.0.1:{PORT}"


@pytest.fixture
def browser(studio: Studio) -> TestClient:
    """A browser that has not opened the page yet."""
    app = make_app(studio, TOKEN, PORT, frozenset({HOST}))
    return TestClient(app, base_url=f"http://{HOST}", follow_redirects=False)


def test_the_printed_address_opens_the_page(browser: TestClient) -> None:
    assert browser.get("/").status_code == 403
    welcome = browser.get(f"/?token={TOKEN}")
    assert welcome.status_code == 303 and welcome.headers["location"] == "/"
    cookie = welcome.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    page = browser.get("/")
    assert page.status_code == 200 and TOKEN not in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert browser.post("/api/parts", json={"name": "a"}, headers={"Origin": f"http://{HOST}"}).status_code == 200


@pytest.mark.parametrize("wrong", ["", "x", TOKEN[:-1], TOKEN + "0", "é"])
def test_a_wrong_token_is_refused(wrong: str, browser: TestClient) -> None:
    assert browser.get("/", params={"token": wrong}).status_code == 403
    for header in (f"token {wrong}".encode(), f"Bearer {wrong}".encode()):
        assert browser.get("/api/state", headers={"Authorization": header}).status_code == 403
    assert browser.get("/api/state", headers={"Cookie": f"slime-studio-{PORT}=x"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {},
    ],
)
def test_another_sites_page_changes_nothing(headers: dict[str, str], browser: TestClient, studio: Studio) -> None:
    browser.get(f"/?token={TOKEN}")
    refused = browser.post("/api/parts", json={"name": "a"}, headers=headers)
    assert refused.status_code == 403 and refused.json()["error"].startswith(("origin: ", "host: "))
    assert len(studio.project.parts) == 1


def test_another_sites_page_reads_nothing(browser: TestClient) -> None:
    browser.get(f"/?token={TOKEN}")
    assert browser.get("/api/state", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/etc/x.png", "a\\..\\x", "", ".", "a/./b"])
def test_a_path_that_climbs_is_refused(path: str, client: TestClient, studio: Studio) -> None:
    refused = client.post("/api/opened/b1", params={"path": path}, content=b"x")
    assert refused.status_code == 400 and "expected one inside the folder" in refused.json()["error"]
    assert not (studio.project.folder / "opened").exists()


@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2fapp.py",
        "/static/%2e%2e%2f%2e%2e%2fproject.json",
        "/api/images/..%2f.token",
        "/api/images/..%2fproject/small",
        "/api/looks/..%2f../x",
        "/api/jobs/1/..%2fjob.json",
        "/api/results/..%2f..%2fproject.json",
        "/api/results/r1/npz",
        "/api/images/.token",
    ],
)
def test_nothing_outside_is_sent(path: str, client: TestClient) -> None:
    assert client.get(path).status_code == 404


def test_batches_and_ids_are_names(client: TestClient, studio: Studio) -> None:
    assert client.post("/api/opened/..?path=x", content=b"x").status_code in (400, 404, 405)
    assert client.post("/api/opened/%2e%2e%2fb?path=x", content=b"x").status_code in (400, 404)
    assert client.post("/api/opened/B%20b?path=x", content=b"x").status_code == 400
    assert sorted(path.name for path in studio.project.folder.parent.iterdir()) == ["cars"]


def test_the_token_is_the_projects_own_and_its_owners_alone(tmp_path: Path) -> None:
    made = project_token(tmp_path)
    assert len(made) == 48 and project_token(tmp_path) == made
    assert (tmp_path / ".token").stat().st_mode & 0o077 == 0
    (tmp_path / ".token").write_text("")
    assert len(project_token(tmp_path)) == 48


def test_a_port_in_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([str(tmp_path / "p"), "--port", str(port), "--no-browser"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: --port {port}: is in use on 127.0.0.1; give another, or 0 for any free one\n"
    )
    assert not (tmp_path / "p").exists()


def test_what_cannot_be_a_project_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    project = Project(tmp_path / "open")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "project.json").write_text("{")
    for name, told in (("file", "cannot be used"), ("open", "is open in another"), ("damaged", "cannot be read")):
        assert main([str(tmp_path / name), "--port", "0", "--no-browser"]) == 2
        line = capsys.readouterr().err
        assert told in line and line.count("\n") == 1
    assert main([str(tmp_path / "p"), "--host", "everywhere"]) == 2
    project.close()
