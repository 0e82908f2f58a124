"""What `[store]` says, and the object store it means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from spotd.errors import ConfigError

if TYPE_CHECKING:
    from spotd.shell.store.access import Access
    from spotd.shell.store.protocol import ObjectStore
    from spotd.shell.store.small import SmallObjects


class StoreConfig(Protocol):  # the attributes are the contract's keys
    """Any object with the keys of `[store]` (contracts.md, section 1)."""

    @property
    def url(self) -> str:
        """`store.url`."""
        ...

    @property
    def endpoint_url(self) -> str | None:
        """`store.endpoint_url`."""
        ...

    @property
    def region(self) -> str | None:
        """`store.region`."""
        ...

    @property
    def storage_class(self) -> str | None:
        """`store.storage_class`."""
        ...

    @property
    def server_side_encryption(self) -> str | None:
        """`store.server_side_encryption`."""
        ...

    @property
    def kms_key_id(self) -> str | None:
        """`store.kms_key_id`."""
        ...

    @property
    def bandwidth_limit(self) -> float | None:
        """`store.bandwidth_limit`."""
        ...


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The keys of `[store]` that the store itself needs. `bandwidth_limit`: bytes a second."""

    url: str
    endpoint_url: str | None = None
    region: str | None = None
    storage_class: str | None = None
    server_side_encryption: str | None = None
    kms_key_id: str | None = None
    bandwidth_limit: float | None = None

    @classmethod
    def of(cls, config: StoreConfig) -> StoreSettings:
        """Returns the settings in a configuration, whatever else it holds."""
        return cls(
            url=config.url,
            endpoint_url=config.endpoint_url,
            region=config.region,
            storage_class=config.storage_class,
            server_side_encryption=config.server_side_encryption,
            kms_key_id=config.kms_key_id,
            bandwidth_limit=config.bandwidth_limit,
        )


def s3_place(settings: StoreSettings, run: str) -> tuple[str, str] | None:
    """Returns bucket and prefix of a run's objects; None for a store that is not S3."""
    parts = urlsplit(settings.url)
    if parts.scheme != "s3" or not parts.netloc:
        return None
    return parts.netloc, "/".join(each for each in [*parts.path.split("/"), run] if each)


def small_objects(settings: StoreSettings, run: str, access: Access) -> SmallObjects | None:
    """Opens the small objects of a run without botocore; None for a store that is not S3."""
    from spotd.shell.store.access import HEADERS  # noqa: PLC0415 - not for file://
    from spotd.shell.store.small import SmallObjects  # noqa: PLC0415

    place = s3_place(settings, run)
    if place is None:
        return None
    wanted = {
        HEADERS["ServerSideEncryption"]: settings.server_side_encryption,
        HEADERS["SSEKMSKeyId"]: settings.kms_key_id,
    }
    options = {name: text for name, text in wanted.items() if text}
    return SmallObjects(access, place[0], f"{place[1]}/", options)


def access_to(store: ObjectStore) -> Access | None:
    """Returns how others reach a store's small objects without botocore, if they can.

    Raises:
        StoreProblem: There are no credentials.
    """
    from spotd.shell.store.s3 import S3Store  # noqa: PLC0415

    return store.access() if isinstance(store, S3Store) else None


def acquaint(store: ObjectStore) -> None:
    """Gets ready to ask small things of a store; moving bytes takes more (`warm`).

    Raises:
        StoreProblem: There are no credentials.
    """
    from spotd.shell.store.s3 import S3Store  # noqa: PLC0415

    if isinstance(store, S3Store):
        _ = store.aws.client  # made at its first use


def open_store(settings: StoreSettings, run: str, *, connections: int = 16) -> ObjectStore:
    """Opens the store of a run; nothing is sent or written yet.

    Raises:
        ConfigError: `store.url` is neither `s3://bucket/prefix` nor `file:///path`.
    """
    parts = urlsplit(settings.url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        from spotd.shell.store.directory import DirectoryStore  # noqa: PLC0415 - not for s3:

        base = Path(unquote(parts.path))
        return DirectoryStore(base / run, base)
    place = s3_place(settings, run)
    if place is not None:
        from spotd.shell.store.aws import S3Options  # noqa: PLC0415
        from spotd.shell.store.s3 import S3Store  # noqa: PLC0415 - not for file://

        options = S3Options(
            settings.endpoint_url,
            settings.region,
            settings.storage_class,
            settings.server_side_encryption,
            settings.kms_key_id,
        )
        return S3Store(*place, options, connections=connections)
    raise ConfigError(
        f"store.url {settings.url!r} is neither s3://bucket/prefix nor file:///path",
        hint='for example url = "s3://my-bucket/training"',
    )
