"""User data: what it holds, what it refuses, and that the example is what is printed."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spotd import user_data
from spotd.cli import main
from spotd.config.documents import default_file, smallest
from spotd.errors import SpotdError
from spotd.user_data import LIMIT, Source, Volume, render

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DEB = "s3://my-bucket/training/spotd_0.1.0_amd64.deb"


def test_the_example_is_what_spotd_prints() -> None:
    volume = Volume("/dev/nvme1n1", "/data", "ubuntu")
    printed = render(smallest(), source=Source(DEB), volume=volume)
    assert (ROOT / "cloud-init/example.yaml").read_text() == printed


@pytest.mark.parametrize("package", [DEB, "https://example.com/spotd.rpm", "spotd==0.1.0"])
def test_it_fits_into_what_ec2_takes_even_with_every_key_explained(package: str) -> None:
    assert len(render(default_file(), source=Source(package)).encode()) < LIMIT


def test_a_configuration_that_is_too_long_is_refused_with_its_size() -> None:
    with pytest.raises(SpotdError, match="bytes"):
        render(f'run = "{"x" * LIMIT}"', source=Source(DEB))


@pytest.mark.parametrize(
    ("source", "volume"),
    [
        (Source("s3://bucket/key"), None),
        (Source(DEB, sha256="abc"), None),
        (Source("spotd", sha256="0" * 64), None),
        (Source(DEB), Volume("/dev/sdb; reboot", "/data")),
        (Source(DEB), Volume("/dev/sdb", "/data $(reboot)")),
    ],
)
def test_what_cannot_work_is_refused(source: Source, volume: Volume | None) -> None:
    with pytest.raises(SpotdError):
        render(smallest(), source=source, volume=volume)


def test_text_from_the_command_line_never_becomes_shell() -> None:
    text = render(smallest(), source=Source("https://example.com/a b;$(reboot).deb"))
    assert "'https://example.com/a b;$(reboot).deb'" in text


def test_secrets_are_not_carried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spotd.toml"
    path.write_text(smallest() + '\n[notify]\nwebhook_url = "https://hooks.example/T0/B0/x"\n')
    assert main(["user-data", "--config", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "notify.webhook_url" in said.err
    assert "hooks.example" not in said.err


def test_the_setup_script_is_valid_shell() -> None:
    for source in (Source(DEB), Source("https://e.com/s.rpm"), Source("spotd")):
        script = user_data._setup(source, Volume("/dev/nvme1n1", "/data", "ubuntu"))
        done = subprocess.run(["sh", "-n"], input=script, text=True, check=False)
        assert done.returncode == 0


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "spotd.deb").write_bytes(b"package")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/spotd.deb"
        server.shutdown()


def test_a_package_is_fetched_whole_or_not_at_all(website: str, tmp_path: Path) -> None:
    fetcher = Path(user_data.__file__).with_name("fetch.py")
    target = tmp_path / "got/spotd.deb"
    right = hashlib.sha256(b"package").hexdigest()
    command = [sys.executable, "-I", fetcher, website, target, "--sha256", right]
    subprocess.run(command, check=True)
    assert target.read_bytes() == b"package"


def test_a_package_that_is_not_the_one_meant_is_not_installed(website: str, tmp_path: Path) -> None:
    from spotd.user_data import fetch

    target = tmp_path / "got/spotd.deb"
    with pytest.raises(ValueError, match="sha256"):
        fetch.fetch(website, str(target), "0" * 64, "")
    assert not target.exists()
