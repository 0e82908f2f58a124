"""Configuration values that say where something is: paths, URLs, addresses."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from spotd.config.kinds import BadValue, Kind, line


def _absolute(value: object) -> Path:
    path = Path(line(value))
    if not path.is_absolute():
        hint = "write the path out" if str(path).startswith("~") else ""
        raise BadValue("is not an absolute path", hint)
    return path


def _path(value: object) -> Path:
    path = Path(line(value))
    if str(path).startswith("~"):
        raise BadValue('begins with "~", and no shell runs', "write the path out")
    return path


def _textfile(value: object) -> Path:
    path = _absolute(value)
    if path.suffix != ".prom":
        raise BadValue("does not end in .prom", "node_exporter reads only *.prom")
    return path


def _store_url(value: object) -> str:
    text = line(value)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("s3", "file"):
        raise BadValue("is not a store", "s3://BUCKET/PREFIX or file:///absolute/path")
    return f"s3://{_s3_place(rest)}" if scheme == "s3" else f"file://{_file_place(rest)}"


def _s3_place(rest: str) -> str:
    """Bucket and prefix, by the naming rules of the S3 user guide ("Bucket naming rules")."""
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise BadValue("names no bucket", "s3://BUCKET/PREFIX")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket) or ".." in bucket:
        raise BadValue(
            "does not begin with a bucket name",
            "3 to 63 lower-case letters, digits, '.' and '-', starting and ending with neither",
        )
    if re.fullmatch(r"[\d.]+", bucket) and bucket.count(".") == 3:  # noqa: PLR2004 - an IPv4 address
        raise BadValue("has an IP address where the bucket belongs", "see store.endpoint_url")
    prefix = prefix.strip("/")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise BadValue("has an empty, '.' or '..' part in its prefix")
    if len(prefix.encode("utf-8", "surrogatepass")) > 512:  # noqa: PLR2004 - half of a key
        raise BadValue("has a prefix of more than 512 bytes")
    return f"{bucket}/{prefix}" if prefix else bucket


def _file_place(rest: str) -> str:
    if not rest.startswith("/"):
        raise BadValue(
            "names a host; only file:///absolute/path works", "mount it and name the path"
        )
    path = Path("/" + rest.strip("/"))
    if path == Path("/") or ".." in path.parts:
        raise BadValue("is not a directory of its own", "file:///absolute/path")
    return str(path)


def _plain_http(value: object) -> str:
    """The metadata service speaks no TLS, and its client neither."""
    text = _http_url(value, path=False)
    if not text.startswith("http://"):
        raise BadValue("is not an http:// URL", "http://169.254.169.254")
    return text


def _http_url(value: object, *, path: bool) -> str:
    text = line(value)
    try:
        parts = urlsplit(text)
        port_is_right = parts.port != 0
    except ValueError:
        parts, port_is_right = urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right:
        raise BadValue("is not an http:// or https:// URL")
    if not text.isascii() or " " in text or "\t" in text:
        raise BadValue("is not an http:// or https:// URL: it holds spaces or letters no URL has")
    if not path and (parts.path.strip("/") or parts.query or parts.fragment):
        raise BadValue("has something behind the host", "the host and port only")
    if not path and "@" in parts.netloc:
        raise BadValue("holds a user name or password")
    return text if path else text.rstrip("/?#")


def _listen(value: object) -> str:
    text = line(value)
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]*):(\d{1,5})", text)
    if not match or not 1 <= int(match[2]) <= 65535:  # noqa: PLR2004 - what a port is
        raise BadValue("is not ADDRESS:PORT", "127.0.0.1:9464")
    return text


ABSOLUTE = Kind("absolute path", _absolute)
PATH = Kind("path", _path)
TEXTFILE = Kind("absolute path ending in `.prom`", _textfile)
STORE_URL = Kind("`s3://` or `file://` URL", _store_url)
BASE_URL = Kind("`http://` or `https://` URL", lambda value: _http_url(value, path=False))
PLAIN_HTTP = Kind("`http://` URL", _plain_http)
LISTEN = Kind("address:port", _listen)
WEBHOOK_URL = Kind(
    "`http://` or `https://` URL", lambda value: _http_url(value, path=True), shown=False
)
